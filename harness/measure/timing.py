"""Load, prefill and decode, timed; a timed run checks its own answer.

The unit is ms per token, because trackers only know that smaller is better. The time of a runtime
in a child process excludes the start of the child and the passing of tensors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from harness.checks.accuracy import error, prompt_length, sequence, tolerances
from harness.errors import HarnessError
from harness.generate.session import Session
from harness.runtimes import isolated_runtime
from harness.runtimes.isolated import overhead_ns
from harness.subject import Subject

WARM_UP_ROUNDS = 1

Result = TypeVar("Result")


class WrongAnswerError(HarnessError):
    """The logits of a timed run are not the model's: its time means nothing."""


@dataclass(frozen=True)
class Round:
    """One timed pass over a sequence: ms per token, and the logits [1 + steps, vocab] it gave."""

    prefill: float
    decode: list[float]
    logits: torch.Tensor


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a process that only loads an artifact and runs it one round.

    `before` is the peak before the load: Python, torch and the runtime's libraries.
    """

    before: int
    peak: int


def milliseconds(action: Callable[[], Result]) -> tuple[Result, float]:
    """Call; return the result, and the time it took in this process and in runtimes."""
    overhead, start = overhead_ns(), time.perf_counter_ns()
    result = action()
    took = time.perf_counter_ns() - start
    return result, (took - (overhead_ns() - overhead)) / 1e6


def load_times(path: str | Path, runtime: str, count: int) -> list[float]:
    """Return the milliseconds of `count` loads, from an unopened file, after a warm-up."""
    times = []
    for _ in range(WARM_UP_ROUNDS + count):
        times.append(milliseconds(lambda: Subject(path).session(runtime))[1])
        gc.collect()  # frees its weights and ends its child before the next load
    return times[WARM_UP_ROUNDS:]


def timed_round(session: Session, tokens: list[int], n_prompt: int) -> Round:
    """Reset, prefill a prompt in chunks, decode the rest token by token, teacher forced."""
    session.reset()
    first, prefill = milliseconds(partial(session.prefill, tokens[:n_prompt]))
    logits, decode = [first], []
    for token in tokens[n_prompt:]:
        row, took = milliseconds(partial(session.decode, token))
        logits.append(row)
        decode.append(took)
    return Round(prefill / n_prompt, decode, torch.stack(logits))


class Stopwatch:
    """Measures one subject on any runtimes; the oracle's answer is computed once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._tokens = sequence(subject)
        if len(self._tokens) < 2:
            raise HarnessError(
                f"{subject.artifact.path}: a context of 1 token leaves nothing to decode, "
                "so there is nothing to time"
            )
        self._n_prompt = prompt_length(subject)
        logits, _, _ = subject.reference(torch.tensor(self._tokens))
        self._wanted = logits[self._n_prompt - 1 :]

    def rounds(self, runtimes: list[str], count: int) -> dict[str, list[Round]]:
        """Time `count` rounds on each runtime, interleaved, after a warm-up."""
        rounds: dict[str, list[Round]] = {runtime: [] for runtime in runtimes}
        for number in range(WARM_UP_ROUNDS + count):
            for runtime in runtimes:
                timed = self.round(runtime)
                if number >= WARM_UP_ROUNDS:
                    rounds[runtime].append(timed)
        return rounds

    def round(self, runtime: str) -> Round:
        """Time one round.

        Raises WrongAnswerError when the runtime's logits are off by more than parity allows.
        """
        return self._checked_round(self._subject.session(runtime), runtime)

    def memory(self, runtime: str) -> Memory:
        """Run one round in a process of its own; raises WrongAnswerError as `round` does."""
        isolated = isolated_runtime(runtime)
        session = Session.open(self._subject.artifact, isolated)
        self._checked_round(session, runtime)
        return Memory(*isolated.memory(self._subject.artifact))

    def _checked_round(self, session: Session, runtime: str) -> Round:
        timed = timed_round(session, self._tokens, self._n_prompt)
        found = error(timed.logits, self._wanted)
        allowed = max(tolerances(self._subject, runtime).values())
        if not found.relative <= allowed:
            raise WrongAnswerError(
                f"{self._subject.artifact.path} on {runtime}: the timed run's logits are off by "
                f"{found.relative:.3g} of the largest, {allowed:.3g} is allowed; its time is not "
                "a result"
            )
        return timed
