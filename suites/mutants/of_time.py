"""Faults of time: an artifact that is fast because it does not compute.

The artifact is real; HEAD's methods are changed when they are loaded.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from harness.errors import HarnessError
from harness.generate.session import Session
from harness.measure.comparison import LanguageModel, Race
from harness.measure.statistics import Goal
from harness.runtimes.base import Method
from harness.suites.mutants.faults import BOTH, PTE, Complaints, Mutant, fault
from harness.suites.mutants.judge import sound

RUNTIME = "mil:widen"


def judge_answer(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Race the sound artifact against itself, with HEAD's sessions changed.

    `answer` is the complaint about a timed run whose logits are wrong.
    """
    subject = sound(mutant.mode)
    head = (mutant.mutate or LanguageModel)(subject, RUNTIME)
    assert isinstance(head, LanguageModel)
    try:
        Race(LanguageModel(subject, RUNTIME), head, Goal(seconds=1)).run(lambda stage: None)
    except HarnessError as error:
        return {"answer": (str(error),)}
    return {}


class Hasty:
    """A method that returns the results of its first call for ever, and at once."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._first: tuple[torch.Tensor, ...] | None = None
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the first results."""
        if self._first is None:
            self._first = tuple(tensor.clone() for tensor in self._method(*tensors))
        return self._first


@fault(
    "fast and wrong",
    {"answer": "on mil:widen: the timed run's logits are off by .* its time is not a result"},
    room="time",
    judge=judge_answer,
    kinds=PTE,
    modes=BOTH,
    tested=(),
)
class FastAndWrong(LanguageModel):
    """Calls return at once what the first call gave."""

    def open(self) -> Session:
        """Open a session whose methods are hasty."""
        session = super().open()
        methods: dict[str, Method] = {n: Hasty(method) for n, method in session.methods.items()}
        return Session(methods, session.layout)
