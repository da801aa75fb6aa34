"""Measures exports of the fixture models; a run's logits are checked before its time counts.

asv calls a class's `setup` and its `track_` methods, and reads the samples that these return;
`harness.measure.timing` does the measuring.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

from harness.errors import HarnessError
from harness.fixtures.project import project
from harness.fixtures.subjects import locate
from harness.measure.timing import Round, Stopwatch, load_times
from harness.runtimes import RUNTIMES, get_runtime
from harness.subject import Subject

PROFILES = {
    "fast": (["tiny"], 3),
    "regular": (["tiny"], 10),
    "large": (["tiny", "smollm2-135m"], 5),
    "huge": (["llama-1b"], 3),
}  # HARNESS_BENCH_PROFILE -> fixtures, timed rounds
PROFILE = os.environ.get("HARNESS_BENCH_PROFILE", "regular")
if PROFILE not in PROFILES:
    raise HarnessError(f"HARNESS_BENCH_PROFILE is '{PROFILE}'; choose from {', '.join(PROFILES)}")
FIXTURES, ROUNDS = PROFILES[PROFILE]
# Names as every command takes them, with commas between, in place of the profile's fixtures.
if SUBJECTS := os.environ.get("HARNESS_BENCH_SUBJECTS"):
    FIXTURES = SUBJECTS.split(",")
MODES = ["single", "multifunction"]
# References are right, not fast: timing them would waste a machine's time.
TIMED = [row.name for row in RUNTIMES.values() if row.timed]
Samples = dict[str, Any]  # as asv takes them: `samples` and `number`
TIMEOUT = 3600  # seconds; the first run exports


def export_of(name: str, mode: str) -> Path:
    """Return the path of a fixture's export, made on first use.

    Raises NotImplementedError, for which asv skips, when a user's artifact has another mode.
    """
    row = project().subjects.get(name)
    if row is not None and "artifact" in row.files:
        path = row.files["artifact"]
        if (own := Subject(path).mode) != mode:
            raise NotImplementedError(f"{name} is an artifact of mode {own}")
        return path
    found = locate(f"{name}/{mode}")
    assert found is not None, f"{name} is the name of a file, too"
    return found.path


def why_unavailable(name: str) -> str | None:
    """Return why a runtime cannot be used here, or None; a crash is for the benchmark to report."""
    try:
        return get_runtime(name).unavailable()
    except HarnessError:
        return None


class PerRuntime:
    """One figure for each fixture, mode and runtime that is available here."""

    params = (FIXTURES, MODES, TIMED)
    param_names = ("fixture", "mode", "runtime")
    timeout = TIMEOUT

    def setup_cache(self) -> dict[str, str | None]:
        """Ask every runtime once, because some import for ten seconds before they answer."""
        return {name: why_unavailable(name) for name in TIMED}

    def setup(
        self, unavailable: Mapping[str, str | None], name: str, mode: str, runtime: str
    ) -> None:
        """Export; NotImplementedError makes asv skip the benchmark and show its message."""
        if reason := unavailable[runtime]:
            raise NotImplementedError(reason)
        self.path = export_of(name, mode)


class Latency(PerRuntime):
    """Milliseconds per token."""

    unit = "ms/token"

    def timed(self, runtime: str) -> list[Round]:
        """Return timed passes, each checked."""
        return Stopwatch(Subject(self.path)).rounds([runtime], ROUNDS)[runtime]

    def track_decode(
        self, unavailable: Mapping[str, str | None], name: str, mode: str, runtime: str
    ) -> Samples:
        """Decode one token at a time, on a cache that fills; a step is a sample."""
        samples = [step for timed in self.timed(runtime) for step in timed.decode]
        return {"samples": samples, "number": 1}

    def track_prefill(
        self, unavailable: Mapping[str, str | None], name: str, mode: str, runtime: str
    ) -> Samples:
        """Prefill a prompt of two and a half chunks."""
        return {"samples": [timed.prefill for timed in self.timed(runtime)], "number": 1}


class Load(PerRuntime):
    """Milliseconds."""

    unit = "ms"

    def track_load(
        self, unavailable: Mapping[str, str | None], name: str, mode: str, runtime: str
    ) -> Samples:
        """Open a file and load its methods; imports do not count."""
        return {"samples": load_times(self.path, runtime, ROUNDS), "number": 1}


class Memory(PerRuntime):
    """Bytes."""

    unit = "bytes"

    def track_peak_memory(
        self, unavailable: Mapping[str, str | None], name: str, mode: str, runtime: str
    ) -> int:
        """Return the peak of a process that loads and runs the export, beyond its libraries."""
        memory = Stopwatch(Subject(self.path)).memory(runtime)
        return memory.peak - memory.before


class Size:
    """Bytes of the .pte: a number that does not depend on the machine."""

    params = (FIXTURES, MODES)
    param_names = ("fixture", "mode")
    unit = "bytes"
    timeout = TIMEOUT

    def track_size(self, name: str, mode: str) -> int:
        """Return the size of the whole file."""
        return export_of(name, mode).stat().st_size
