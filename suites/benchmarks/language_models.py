"""Exports of the fixture models, timed; each run's logits are checked before its time counts."""

import os
import time
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

from fixtures.cache import exported, fixture
from harness.checks import Subject
from harness.measure.timing import Stopwatch
from harness.runtimes import RUNTIMES, get_runtime

FIXTURES = {"fast": ["tiny"], "large": ["tiny", "smollm2-135m"]}[
    os.environ.get("HARNESS_BENCH_PROFILE", "fast")
]
MODES = ["single", "multifunction"]
TIMED = [name for name in RUNTIMES if name not in ("mil:double", "eager:fp16", "eager:fp64")]
ROUNDS = 5


def export_of(name, mode):
    """The path of a fixture's export, made on first use."""
    return exported(name, replace(fixture(name).options, mode=mode))


class Latency:
    """Milliseconds per token; every sample is one step, asv keeps them all."""

    params = (FIXTURES, MODES, TIMED)
    param_names = ("fixture", "mode", "runtime")
    unit = "ms/token"
    timeout = 1800

    def setup(self, name, mode, runtime):
        """Export, or skip where the runtime is not available: its reason is the message."""
        if reason := get_runtime(runtime).unavailable():
            raise NotImplementedError(reason)
        self.path = export_of(name, mode)

    def track_decode(self, name, mode, runtime):
        """One token at a time, on a cache that fills."""
        rounds = Stopwatch(Subject(self.path)).rounds([runtime], ROUNDS)[runtime]
        return {"samples": [step for timed in rounds for step in timed.decode], "number": 1}

    def track_prefill(self, name, mode, runtime):
        """A prompt of two and a half chunks."""
        rounds = Stopwatch(Subject(self.path)).rounds([runtime], ROUNDS)[runtime]
        return {"samples": [timed.prefill for timed in rounds], "number": 1}


class Load:
    """Milliseconds from an unopened file to loaded methods; imports are not counted."""

    params = Latency.params
    param_names = Latency.param_names
    unit = "ms"
    timeout = 1800
    setup = Latency.setup

    def track_load(self, name, mode, runtime):
        """Five times, each from the file."""
        samples = []
        Subject(self.path).session(runtime)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            Subject(self.path).session(runtime)
            samples.append((time.perf_counter() - start) * 1000)
        return {"samples": samples, "number": 1}


class Size:
    """Bytes of the .pte: a number that does not depend on the machine."""

    params = (FIXTURES, MODES)
    param_names = ("fixture", "mode")
    unit = "bytes"
    timeout = 1800

    def track_size(self, name, mode):
        """The whole file."""
        return export_of(name, mode).stat().st_size
