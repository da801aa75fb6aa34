"""The artifacts under test: exports of fixture models, made and opened on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import HarnessError
from harness.export.options import CHOICES, ExportOptions
from harness.fixtures.cache import exported, fixture
from harness.subject import Subject


@dataclass(frozen=True)
class SubjectName:
    """The parts of a subject's name, "EXPORTER:MODEL+SCHEME".

    Without an exporter, it is ExecuTorch's; "+b4w" asks for that linear quantization.
    """

    exporter: str
    model: str
    scheme: str

    @classmethod
    def parse(cls, text: str) -> SubjectName:
        """Parse a name."""
        exporter, _, rest = text.rpartition(":")
        model, _, scheme = rest.partition("+")
        return cls(exporter or "executorch", model, scheme)


class Subjects:
    """Subjects by fixture name and mode; `progress` hears what is being exported.

    Only the last one stays open: with its oracle and its sessions it may take gigabytes.
    """

    def __init__(self, progress: Callable[[str], object]) -> None:
        self._progress = progress
        self._opened: dict[tuple[str, str], Subject] = {}

    def options(self, fixture_name: str, mode: str) -> ExportOptions:
        """Return the options of an export."""
        name = SubjectName.parse(fixture_name)
        options = replace(fixture(name.model, self._progress).options, mode=mode)
        scheme = name.scheme
        if scheme and scheme not in CHOICES["linear_quantize"]:
            allowed = ", ".join(CHOICES["linear_quantize"])
            raise HarnessError(f"fixture '{fixture_name}': '{scheme}' is not one of {allowed}")
        return replace(options, linear_quantize=scheme) if scheme else options

    def get(self, fixture_name: str, mode: str) -> Subject:
        """Return a subject, exporting it unless it is in the cache.

        A multifunction subject that shares weights comes with the same export without sharing.
        """
        key = (fixture_name, mode)
        if key not in self._opened:
            self._opened.clear()
            self._opened[key] = self._open(fixture_name, mode)
        return self._opened[key]

    def of_executorch(self, fixture_name: str, mode: str) -> Subject:
        """Return ExecuTorch's export of a subject's model, with the same options."""
        model, options = SubjectName.parse(fixture_name).model, self.options(fixture_name, mode)
        return Subject(exported(model, options, self._progress), options=options)

    def _open(self, fixture_name: str, mode: str) -> Subject:
        name, options = SubjectName.parse(fixture_name), self.options(fixture_name, mode)
        source = fixture(name.model, self._progress)

        def export(options: ExportOptions) -> Path:
            return exported(name.model, options, self._progress, name.exporter)

        unshared = None
        if mode == "multifunction" and options.weight_sharing != "none":
            unshared = export(replace(options, weight_sharing="none"))
        return Subject(export(options), source.checkpoint, source.params, options, unshared)
