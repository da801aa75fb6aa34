"""Prefill and decode, timed; a timed run checks its own answer.

Milliseconds per token, because trackers only know that smaller is better.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from harness.checks.metrics import error
from harness.checks.parity import prompt_length, sequence, tolerances
from harness.checks.subject import Subject
from harness.errors import HarnessError
from harness.generate.session import Session

WARM_UP_ROUNDS = 1


class WrongAnswerError(HarnessError):
    """A run was timed whose logits are not the model's: its time says nothing."""


@dataclass(frozen=True)
class Round:
    """One timed pass over a sequence: ms per token, and the logits [1 + steps, vocab] it gave."""

    prefill: float
    decode: list[float]
    logits: torch.Tensor


def timed_round(session: Session, tokens: list[int], n_prompt: int) -> Round:
    """Reset, prefill a prompt in chunks, decode the rest token by token, teacher forced."""
    session.reset()
    start = time.perf_counter_ns()
    logits = [session.prefill(tokens[:n_prompt])]
    prefill = (time.perf_counter_ns() - start) / 1e6 / n_prompt
    decode = []
    for token in tokens[n_prompt:]:
        start = time.perf_counter_ns()
        logits.append(session.decode(token))
        decode.append((time.perf_counter_ns() - start) / 1e6)
    return Round(prefill, decode, torch.stack(logits))


class Stopwatch:
    """Times one subject on any runtimes; the oracle's answer is computed once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._tokens = sequence(subject)
        self._n_prompt = prompt_length(subject)
        cos, sin = subject.tables
        length = len(self._tokens)
        logits, _, _ = subject.oracle(torch.tensor(self._tokens), (cos[:length], sin[:length]))
        self._wanted = logits[self._n_prompt - 1 :]

    def rounds(self, runtimes: list[str], count: int) -> dict[str, list[Round]]:
        """Time ``count`` rounds on each runtime, interleaved, after a warm-up."""
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
        timed = timed_round(self._subject.session(runtime), self._tokens, self._n_prompt)
        self._check(timed, runtime)
        return timed

    def _check(self, timed: Round, runtime: str) -> None:
        found = error(timed.logits, self._wanted)
        allowed = max(tolerances(self._subject, runtime).values())
        if not found.relative <= allowed:
            raise WrongAnswerError(
                f"{self._subject.artifact.path} on {runtime}: the timed run's logits are off by "
                f"{found.relative:.3g} of the largest, {allowed:.3g} is allowed; its time is no "
                "result"
            )
