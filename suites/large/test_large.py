"""Speed, memory and load time of multifunction exports, against the figures that they must reach.

One process times decode and prefill: a step of our executor and one of eager PyTorch in fp32
(`eager:fp32`, the artifact's own weights, expanded) in turn; the median of the ratios counts.
Memory is that of a process which only loads and runs. The suite needs a quiet machine: two cores,
and 12 GB for eager's side of llama-1b.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
import torch

from harness.artifact import open_artifact
from harness.checks import Check, run_check
from harness.fixtures import model
from harness.fixtures.cache import exported
from harness.generate.session import Session
from harness.results import Case, Figure, Finding
from harness.runtimes import BASELINE, REFERENCE

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

T = TypeVar("T")
ROUNDS, STEPS, PROMPT = 5, 16, 64
ALLOWED = 1e-5  # of the largest logit: what separates two orders of an fp32 sum, and no weight
MAX_LOAD_SECONDS = 10
MAX_PEAK_BYTES, PEAK_PER_BYTE = 0.6e9, 1.5  # that much, and that much for each byte of the artifact


@dataclass(frozen=True)
class Bar:
    """A fixture and how many times eager's speed its decode must reach; prefill must reach it."""

    fixture: str
    decode: float


BARS = (Bar("llama-1b", 3.0), Bar("smollm2-135m", 2.0), Bar("tiny", 1.0))
every_bar = pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.fixture)


def judged(name: str, find: Callable[[Path], Iterator[Finding]], bar: Bar) -> Case:
    """Run a check on the path of a fixture's export."""
    options = replace(model(bar.fixture).options, mode="multifunction")
    return run_check(
        Check[Path](name, lambda path, runtime: find(path), takes_runtime=True),
        lambda: exported(bar.fixture, options),
        REFERENCE,
        suite="large",
        fixture=bar.fixture,
        mode=options.mode,
    )


def seconds(action: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns, and the time that it took."""
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


@dataclass
class Race:
    """Eager's time over ours for each prefill and each decode step; and how far the logits differ.

    `errors` has each step's largest difference, in units of its largest logit.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    compared: int = 0

    def compare(self, ours: torch.Tensor, eager: torch.Tensor) -> None:
        """Compare the logits of one step."""
        self.compared += eager.numel()
        self.errors.append(((ours - eager).abs().max() / eager.abs().max()).item())


def decode_one(session: Session, token: int) -> torch.Tensor:
    return session.decode(token)


def make_room(session: Session, tokens: list[int]) -> None:
    """Prefill the prompt again when the context is full."""
    if not session.room:
        session.reset()
        session.prefill(tokens[:PROMPT])


def race(ours: Session, eager: Session, tokens: list[int]) -> Race:
    """Time two sessions in turn, and compare their logits on the way."""
    found = Race()
    for number in range(ROUNDS + 1):  # the first one warms up
        ours.reset()
        eager.reset()
        actions: list[Callable[[Session], torch.Tensor]]
        actions = [lambda session: session.prefill(tokens[:PROMPT])]
        actions += [partial(decode_one, token=token) for token in tokens[PROMPT:]]
        for step, action in enumerate(actions):
            mine, took = seconds(partial(action, ours))
            wanted, took_eager = seconds(partial(action, eager))
            found.compare(mine, wanted)
            if number:
                (found.decode if step else found.prefill).append(took_eager / took)
    return found


@every_bar
def test_decode_and_prefill_reach_their_multiple_of_eager(
    bar: Bar, record: Callable[[Case], None], timed: BenchmarkFixture
) -> None:
    def find(path: Path) -> Iterator[Finding]:
        artifact = open_artifact(path)
        ours, eager = (Session.open(artifact, n) for n in (REFERENCE, BASELINE))
        generator = torch.Generator().manual_seed(5)
        room = min(PROMPT + STEPS, ours.layout.context)
        tokens = torch.randint(ours.layout.vocab_size, (room,), generator=generator).tolist()
        found = race(ours, eager, tokens)
        prefill, decode = statistics.median(found.prefill), statistics.median(found.decode)
        print(f"{bar.fixture}: prefill {prefill:.2f}, decode {decode:.2f} times eager fp32")
        figures = {
            "prefill_times_eager": Figure(prefill, "x", 1.0, "higher"),
            "decode_times_eager": Figure(decode, "x", bar.decode, "higher"),
            "logits_error": Figure(np.max(found.errors), bound=ALLOWED),
        }
        timed.extra_info.update({name: figure.value for name, figure in figures.items()})
        timed.pedantic(ours.decode, (1,), setup=partial(make_room, ours, tokens), rounds=STEPS)
        yield Finding("speed", "", comparisons=found.compared, figures=figures)

    record(judged("speed", find, bar))


CHILD = """
import sys, time
import torch
from harness.generate.session import Session
from harness.runtimes import get_runtime
from harness.child import peak_memory
runtime = get_runtime("mil:widen")
start = time.perf_counter()
session = Session.open(sys.argv[1], runtime)
took = time.perf_counter() - start
session.prefill(list(range(1, 65)))
session.decode(1)
print(took, peak_memory())
"""


@every_bar
def test_a_process_that_loads_and_runs_stays_small(
    bar: Bar, record: Callable[[Case], None], timed: BenchmarkFixture
) -> None:
    def find(path: Path) -> Iterator[Finding]:
        done = timed.pedantic(
            partial(subprocess.run, capture_output=True, text=True),
            ([sys.executable, "-c", CHILD, str(path)],),
            {"cwd": Path(__file__).resolve().parents[2]},
        )
        if done.returncode:
            yield Finding("memory", "", ok=False, message=done.stderr[-2000:])
            return
        took, peak = map(float, done.stdout.split())
        print(f"{bar.fixture}: loaded in {took:.1f} s, peak {peak / 1e6:.0f} MB")
        allowed = PEAK_PER_BYTE * path.stat().st_size + MAX_PEAK_BYTES
        figures = {
            "load_seconds": Figure(took, "s", MAX_LOAD_SECONDS),
            "peak_bytes": Figure(peak, "bytes", allowed),
        }
        timed.extra_info.update({name: figure.value for name, figure in figures.items()})
        yield Finding("memory", "", comparisons=len(figures), figures=figures)

    record(judged("memory", find, bar))
