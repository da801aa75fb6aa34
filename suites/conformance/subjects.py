"""The artifacts under test: exports of fixture models, made and opened on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import HarnessError, NotInstalledError
from harness.export import EXPORTERS, Progress
from harness.export.exporters import Exporter, get_exporter
from harness.export.options import CHOICES, ExportOptions
from harness.fixtures import Model, model
from harness.fixtures.cache import exported, fixture
from harness.fixtures.project import project
from harness.subject import Subject


@dataclass(frozen=True)
class SubjectName:
    """The parts of a subject's name, "EXPORTER:MODEL+SCHEME", as "executorch@1.5.1:tiny+b4w".

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


def row_of(fixture_name: str) -> Model:
    """Return the model or artifact of a fixture's name; raises HarnessError for an unknown one."""
    return model(SubjectName.parse(fixture_name).model)


def exporters_of(fixture_name: str, asked_for: Sequence[str] | None) -> Sequence[str]:
    """Return the names of those who export a fixture: nobody, if it is an artifact that exists."""
    if fixture_name == "matrix":
        return asked_for or EXPORTERS
    row = row_of(fixture_name)
    if "artifact" in row.files:
        return ()
    return asked_for or ((row.exporter,) if row.exporter else EXPORTERS)


def modes_of(fixture_name: str) -> Sequence[str]:
    """Return the modes of a fixture; that of an artifact is its own, "-" without the two modes."""
    row = row_of(fixture_name)
    if "artifact" not in row.files:
        return row.modes
    try:
        return (Subject(row.files["artifact"]).mode,)
    except HarnessError:
        return ("-",)


def chosen_exporters(names: Sequence[str], progress: Progress) -> dict[str, Exporter | None]:
    """Return exporters by the name that cases carry; None for one that is not installed.

    The only one of ExecuTorch's is called `executorch`, whatever its version, so that the gate can
    compare two runs; several are called by their versions. Raises HarnessError for an exporter that
    cannot be used, and for two that are the same.
    """
    found: dict[str, Exporter | None] = {}
    several = sum(name != "coreml" for name in names) > 1
    for name in names:
        try:
            exporter = get_exporter(project().exporter(name), progress)
        except NotInstalledError:
            exporter = None
        label = name if exporter is None or name == "coreml" else exporter.kind
        if several and exporter is not None and exporter.kind != "coreml":
            label = exporter.label if "@" in exporter.label else f"{label}@{exporter.version}"
            if name in project().exporters:
                label = name
        if label in found:
            raise HarnessError(f"--exporter {name}: {label} is named twice")
        found[label] = exporter
    return found


class Subjects:
    """Subjects by fixture name and mode; `progress` hears what is being exported.

    Only the last one stays open: with its oracle and its sessions it may take gigabytes.
    """

    def __init__(
        self,
        progress: Progress,
        exporters: Mapping[str, Exporter] | None = None,
        unshared: bool = True,
    ) -> None:
        """Create it empty; `exporters` by the name in subjects' names, by default all of ours.

        With `unshared`, a multifunction subject comes with the same export without sharing.
        """
        self._progress = progress
        self._unshared = unshared
        self._exporters = exporters or {}
        self._opened: dict[tuple[str, str], Subject] = {}
        self._failed: dict[tuple[str, str], HarnessError] = {}

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

        An export that failed is not tried again.
        """
        key = (fixture_name, mode)
        if key in self._failed:
            raise self._failed[key]
        if key not in self._opened:
            self._opened.clear()
            try:
                self._opened[key] = self._open(fixture_name, mode)
            except HarnessError as error:
                self._failed[key] = error.with_traceback(None)
                raise
        return self._opened[key]

    def of_first(self, fixture_name: str, mode: str) -> Subject:
        """Return the export of a subject's model by the first ExecuTorch, with the same options."""
        name, options = SubjectName.parse(fixture_name).model, self.options(fixture_name, mode)
        first = next((name for name in self._exporters if name != "coreml"), "executorch")
        return Subject(self._export(name, options, first), options=options)

    def _open(self, fixture_name: str, mode: str) -> Subject:
        name = SubjectName.parse(fixture_name)
        row = model(name.model)
        files = row.files
        if "artifact" in files:
            return Subject(
                files["artifact"],
                files.get("checkpoint"),
                files.get("params"),
                reference=row.reference,
                golden=files.get("golden"),
            )
        options = self.options(fixture_name, mode)
        source = fixture(name.model, self._progress)

        path, unshared = self._export(name.model, options, name.exporter), None
        if self._unshared and mode == "multifunction" and options.weight_sharing != "none":
            alone = replace(options, weight_sharing="none")
            unshared = self._export(name.model, alone, name.exporter)
        return Subject(path, source.checkpoint, source.params, options, unshared)

    def _export(self, name: str, options: ExportOptions, exporter: str) -> Path:
        by = self._exporters.get(exporter, exporter)
        return exported(name, options, self._progress, by)
