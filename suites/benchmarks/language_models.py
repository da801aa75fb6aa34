"""The benchmarks: each is one figure of one export, or its ratio to the control.

asv runs each of them in a process of its own. The first one that needs a measurement makes it, with
the control's beside it, and leaves it in asv's folder for the others. `SETTINGS` chooses subjects,
exporters, modes and runtimes; asv imports this module to learn them, so it does not import torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

from harness.errors import HarnessError
from harness.runtimes import BASELINE, RUNTIMES, get_runtime, runtime_row
from harness.suites.benchmarks.figures import CORE_ML, Session

VARIABLE = "HARNESS_BENCHMARKS"
ARTIFACT = "-"  # in place of an exporter, for a subject that exists already
# References are right, not fast: timing them would waste a machine's time.
TIMED = [row.name for row in RUNTIMES.values() if row.timed]


@dataclass(frozen=True)
class Settings:
    """What is measured, from the folder in which the subjects' names hold.

    `subjects` maps each name to the label of its only exporter, or to None for all of `exporters`;
    those map the labels of series to the names of exporters.
    """

    folder: str = "."
    subjects: dict[str, str | None] = field(default_factory=lambda: {"tiny": None})
    exporters: dict[str, str] = field(default_factory=lambda: {"executorch": "executorch"})
    modes: list[str] = field(default_factory=lambda: ["single", "multifunction"])
    runtimes: list[str] = field(default_factory=lambda: TIMED)
    rounds: int = 8

    @classmethod
    def read(cls) -> Settings:
        """Return the settings of the environment variable, or the defaults without it."""
        return cls(**json.loads(os.environ.get(VARIABLE, "{}")))

    def to_json(self) -> str:
        """Return the text of the environment variable."""
        return json.dumps(asdict(self))


SETTINGS = Settings.read()
Values = dict[str, Any]  # as asv takes them: `samples` and `number`
Cache = dict[str, Any]


def why_unavailable(name: str) -> str | None:
    """Return why a runtime cannot be used here, or None; a crash is for the benchmark to report."""
    try:
        return get_runtime(name).unavailable()
    except HarnessError:
        return None


class PerExport:
    """One figure for each subject, exporter and mode.

    `version` is the series': unless it changes, asv keeps the results of earlier code.
    """

    params: Any = (list(SETTINGS.subjects), list(SETTINGS.exporters), SETTINGS.modes)
    param_names: Any = ("subject", "exporter", "mode")
    version = "1"
    timeout = 3600  # seconds; an export and the control's measurement may be part of it
    ratio = False

    def setup_cache(self) -> Cache:
        """Ask every runtime once, because some import for ten seconds before they answer."""
        return {
            "folder": str(Path.cwd()),
            "unavailable": {name: why_unavailable(name) for name in SETTINGS.runtimes},
        }

    def setup(self, cache: Cache, *parameters: str) -> None:
        """Raise NotImplementedError, for which asv skips, with the reason, where none applies."""
        subject, exporter, mode, *runtime = parameters
        if runtime and (reason := cache["unavailable"][runtime[0]]):
            raise NotImplementedError(reason)
        os.chdir(SETTINGS.folder)
        own = SETTINGS.subjects[subject]
        if own not in (None, exporter):
            by = "an artifact that exists" if own == ARTIFACT else f"exported by {own}"
            raise NotImplementedError(f"{subject} is {by}")
        by = SETTINGS.exporters[exporter]
        self.session = Session(Path(cache["folder"]), subject, by, mode, SETTINGS.rounds)

    def figure(self, name: str, runtime: str = BASELINE) -> Values:
        """Return the samples of a figure, or those of its ratio to the control."""
        from asv_runner.benchmarks.mark import SkipNotImplemented

        try:
            values, control = self.session.measured(runtime).get(name, ([], []))
        except NotImplementedError as reason:
            raise SkipNotImplemented(str(reason)) from None
        if not values or (self.ratio and not control):
            raise SkipNotImplemented(f"there is no such figure of {name} for this subject")
        if self.ratio:
            values = [value / other for value, other in zip(values, control, strict=True)]
        assert all(map(math.isfinite, values)), f"{name}: {values}"
        return {"samples": values, "number": 1}


class PerRuntime(PerExport):
    """One figure for each subject, exporter, mode and runtime that is available here."""

    params = (*PerExport.params, SETTINGS.runtimes)
    param_names = (*PerExport.param_names, "runtime")


def of_runtime(name: str) -> Callable[..., Values]:
    """Return the benchmark of a figure of each runtime."""

    def benchmark(self: PerRuntime, cache: Cache, *parameters: str) -> Values:
        return self.figure(name, parameters[-1])

    benchmark.__doc__ = f"Return the samples of {name}."
    return benchmark


def of_export(name: str) -> Callable[..., Values]:
    """Return the benchmark of a figure of each export."""

    def benchmark(self: PerExport, cache: Cache, *parameters: str) -> Values:
        return self.figure(name)

    benchmark.__doc__ = f"Return the samples of {name}."
    return benchmark


class PerToken(PerRuntime):
    """Decode at three depths of the cache, and prefill of a whole context."""

    unit = "ms/token"
    track_decode_at_0 = of_runtime("decode at 0")
    track_decode_at_half = of_runtime("decode at half")
    track_decode_at_full = of_runtime("decode at full")
    track_prefill = of_runtime("prefill")


class PerTokenRatio(PerToken):
    """The same, as multiples of the control's."""

    unit, ratio = f"x {BASELINE}", True


class Time(PerRuntime):
    """From a prompt to its first token; loads; calls of what is not a language model."""

    unit = "ms"
    track_first_token = of_runtime("first token")
    track_load_cold = of_runtime("load, cold")
    track_load_cached = of_runtime("load, cached")
    track_calls = of_runtime("calls")


class TimeRatio(Time):
    """The same, as multiples of the control's."""

    unit, ratio = f"x {BASELINE}", True


if core_mls := [name for name in SETTINGS.runtimes if runtime_row(name).kind == "coreml"]:

    class CoreMLPerToken(PerRuntime):
        """Decode and prefill by Core ML's own clock: its predictions, without what is around."""

        params = (*PerExport.params, core_mls)
        unit = "ms/token"
        track_decode_at_0 = of_runtime("decode at 0" + CORE_ML)
        track_decode_at_full = of_runtime("decode at full" + CORE_ML)
        track_prefill = of_runtime("prefill" + CORE_ML)

    class CoreMLPerTokenRatio(CoreMLPerToken):
        """The same, as multiples of the control's."""

        unit, ratio = f"x {BASELINE}", True

    class CoreMLTime(PerRuntime):
        """Loads by Core ML's own clock, without compiling."""

        params = (*PerExport.params, core_mls)
        unit = "ms"
        track_load_cold = of_runtime("load, cold" + CORE_ML)
        track_load_cached = of_runtime("load, cached" + CORE_ML)

    class CoreMLTimeRatio(CoreMLTime):
        """The same, as multiples of the control's."""

        unit, ratio = f"x {BASELINE}", True


class Memory(PerRuntime):
    """The peak of a process that loads and runs the export, beyond its libraries."""

    unit = "bytes"
    track_peak = of_runtime("peak memory")


class MemoryRatio(Memory):
    """The same, as a multiple of the control's."""

    unit, ratio = f"x {BASELINE}", True


class Size(PerExport):
    """The whole artifact; the control's size is that of its weights in fp32."""

    unit = "bytes"
    track_bytes = of_export("size")


class SizeRatio(Size):
    """The same, as a multiple of the control's."""

    unit, ratio = f"x {BASELINE}", True


class ExportTime(PerExport):
    """One export, in a process of its own; the control is its own cold load."""

    unit = "seconds"
    track_export = of_export("export")


class ExportTimeRatio(ExportTime):
    """The same, as a multiple of the control's."""

    unit, ratio = f"x {BASELINE}", True


class ExportMemory(PerExport):
    """The peak of the largest process of the export; the control is its own peak."""

    unit = "bytes"
    track_peak = of_export("export memory")


class ExportMemoryRatio(ExportMemory):
    """The same, as a multiple of the control's."""

    unit, ratio = f"x {BASELINE}", True
