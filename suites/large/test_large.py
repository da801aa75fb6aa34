"""Speed, memory and load time of multifunction exports, against the figures that they must reach.

Decode and prefill are timed in one process, one step of our executor and one of eager PyTorch in
fp32 (`eager:fp32`, the artifact's own weights, expanded) in turn; the median of the ratios counts.
Memory is that of a process which only loads and runs. A quiet machine is needed: two cores, and
12 GB for eager's side of llama-1b.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from harness.artifact import open_artifact
from harness.fixtures.cache import exported
from harness.fixtures.models import model
from harness.generate.session import open_session
from harness.runtimes import get_runtime

ROUNDS, STEPS, PROMPT = 5, 16, 64
ALLOWED = 1e-5  # of the largest logit: what separates two orders of an fp32 sum, and no weight


@dataclass(frozen=True)
class Bar:
    """A fixture and how many times eager's speed its decode must reach; prefill must reach it."""

    fixture: str
    decode: float


BARS = (Bar("llama-1b", 3.0), Bar("smollm2-135m", 2.0), Bar("tiny", 1.0))


def path_of(fixture):
    return exported(fixture, replace(model(fixture).options, mode="multifunction"))


def seconds(action):
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def ratios(ours, eager, tokens):
    """Eager's time over ours for the prefill and for each step, the logits compared on the way."""
    prefill, decode = [], []
    for number in range(ROUNDS + 1):  # the first one warms up
        ours.reset()
        eager.reset()
        actions = [lambda session: session.prefill(tokens[:PROMPT])]
        actions += [lambda session, t=token: session.decode(t) for token in tokens[PROMPT:]]
        for step, action in enumerate(actions):
            mine, took = seconds(partial(action, ours))
            wanted, took_eager = seconds(partial(action, eager))
            assert (mine - wanted).abs().max() <= ALLOWED * wanted.abs().max()
            if number:
                (decode if step else prefill).append(took_eager / took)
    return prefill, decode


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.fixture)
def test_decode_and_prefill_reach_their_multiple_of_eager(bar, record_property):
    artifact = open_artifact(path_of(bar.fixture))
    ours, eager = (open_session(artifact, get_runtime(n)) for n in ("mil:widen", "eager:fp32"))
    generator = torch.Generator().manual_seed(5)
    room = min(PROMPT + STEPS, ours.layout.context)
    tokens = torch.randint(ours.layout.vocab_size, (room,), generator=generator).tolist()
    prefill, decode = (statistics.median(r) for r in ratios(ours, eager, tokens))
    record_property("prefill_times_eager", prefill)
    record_property("decode_times_eager", decode)
    print(f"{bar.fixture}: prefill {prefill:.2f}, decode {decode:.2f} times eager fp32")
    assert decode >= bar.decode and prefill >= 1.0


CHILD = """
import sys, time
import torch
from harness.artifact import open_artifact
from harness.generate.session import open_session
from harness.runtimes import get_runtime
from harness.runtimes._isolated_child import peak_memory
runtime = get_runtime("mil:widen")
start = time.perf_counter()
session = open_session(open_artifact(sys.argv[1]), runtime)
took = time.perf_counter() - start
session.prefill(list(range(1, 65)))
session.decode(1)
print(took, peak_memory())
"""


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.fixture)
def test_a_process_that_loads_and_runs_stays_small(bar, record_property):
    path = path_of(bar.fixture)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    took, peak = map(float, done.stdout.split())
    record_property("load_seconds", took)
    record_property("peak_bytes", peak)
    print(f"{bar.fixture}: loaded in {took:.1f} s, peak {peak / 1e6:.0f} MB")
    assert took <= 10 and peak <= 1.5 * path.stat().st_size + 0.6e9
