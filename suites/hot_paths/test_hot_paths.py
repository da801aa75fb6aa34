"""The harness's own hot paths, timed by pytest-benchmark; each result is checked.

`--benchmark-json FILE` keeps the times, `--benchmark-compare` compares two such runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from harness.artifact import open_artifact
from harness.artifact.facts import artifact_facts
from harness.fixtures import model
from harness.fixtures.cache import exported
from harness.generate.session import Session
from harness.measure.timing import Stopwatch
from harness.models.recognise import read_model
from harness.subject import Subject

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 20


@pytest.fixture(scope="module", params=["tiny", "smollm2-135m"])
def path(request: pytest.FixtureRequest) -> Path:
    return exported(request.param, replace(model(request.param).options, mode="multifunction"))


@pytest.fixture(scope="module")
def stopwatch(path: Path) -> Stopwatch:
    return Stopwatch(Subject(path))


def test_inspect(path: Path, timed: BenchmarkFixture) -> None:
    """Open a file and read its facts, which `harness inspect` prints."""
    facts = timed(lambda: artifact_facts(open_artifact(path)))
    assert facts.size == path.stat().st_size and len(facts.methods) == 2


def test_expand_weights(path: Path, timed: BenchmarkFixture) -> None:
    """Recognise the model, and expand its weights to fp32."""
    artifact = open_artifact(path)
    rounds = 3 if path.stat().st_size > 1e7 else ROUNDS
    config, weights = timed.pedantic(lambda: read_model(artifact, "forward"), rounds=rounds)
    assert len(weights) > 9 * config.n_layers


def test_load(path: Path, timed: BenchmarkFixture) -> None:
    """Load both methods on our executor, from the file."""
    session = timed.pedantic(
        lambda: Session.open(open_artifact(path), "mil:widen"), rounds=5, warmup_rounds=1
    )
    assert session.position == 0


@pytest.mark.parametrize("runtime", ["mil:widen", "mil:strict"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_step(
    phase: str, runtime: str, path: Path, stopwatch: Stopwatch, timed: BenchmarkFixture
) -> None:
    """Prefill a chunk, or decode a token after it; the logits of a round are the oracle's."""
    session = Session.open(open_artifact(path), runtime)
    stopwatch.run(session, runtime)  # raises WrongAnswerError
    chunk = list(range(1, 1 + session.layout.prefill.input_len))
    steps: dict[str, Callable[[], torch.Tensor]] = {
        "prefill": lambda: session.prefill(chunk),
        "decode": lambda: session.decode(1),
    }

    def begin() -> None:
        session.reset()
        if phase == "decode":
            session.prefill(chunk)

    begin()
    expected = steps[phase]().clone()
    given = timed.pedantic(steps[phase], setup=begin, rounds=ROUNDS)
    assert torch.allclose(given, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_round(path: Path, stopwatch: Stopwatch, timed: BenchmarkFixture) -> None:
    """Make one timed round of `harness bench`, whose logits are compared with the oracle's."""
    session = Session.open(open_artifact(path), "mil:widen")
    timed.pedantic(lambda: stopwatch.run(session, "mil:widen"), rounds=5, warmup_rounds=1)
