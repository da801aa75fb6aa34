"""The artefacts under test: exports of fixture models, made on first use, opened once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fixtures.cache import exported, fixture
from harness.checks import Subject
from harness.errors import HarnessError
from harness.export.options import CHOICES, ExportOptions


class Subjects:
    """Subjects by fixture name and mode; ``progress`` is told what is being made.

    Only the last one is kept open: with its oracle and its sessions it may take gigabytes.
    """

    def __init__(self, progress: Callable[[str], object]) -> None:
        self._progress = progress
        self._opened: dict[tuple[str, str], Subject] = {}

    def options(self, fixture_name: str, mode: str) -> ExportOptions:
        """The options of an export; "NAME+b4w" is the model with that linear quantisation."""
        name, _, scheme = fixture_name.partition("+")
        options = replace(fixture(name, self._progress).options, mode=mode)
        if scheme and scheme not in CHOICES["linear_quantize"]:
            allowed = ", ".join(CHOICES["linear_quantize"])
            raise HarnessError(f"fixture '{fixture_name}': '{scheme}' is not one of {allowed}")
        return replace(options, linear_quantize=scheme) if scheme else options

    def get(self, fixture_name: str, mode: str) -> Subject:
        """Return a subject, exporting what is not in the cache.

        A multifunction subject that shares weights comes with the same export without sharing.
        """
        key = (fixture_name, mode)
        if key not in self._opened:
            self._opened.clear()
            self._opened[key] = self._open(fixture_name, mode)
        return self._opened[key]

    def _open(self, fixture_name: str, mode: str) -> Subject:
        name, options = fixture_name.partition("+")[0], self.options(fixture_name, mode)
        model = fixture(name, self._progress)
        unshared = None
        if mode == "multifunction" and options.weight_sharing != "none":
            unshared = exported(name, replace(options, weight_sharing="none"), self._progress)
        return Subject(
            exported(name, options, self._progress),
            model.checkpoint,
            model.params,
            options,
            unshared,
        )
