"""Faults of time: an artifact that is slow, unstable, or fast because it does not compute.

The artifact is real; its methods are changed when they are loaded.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection
from functools import partial
from typing import cast

import torch

from harness.errors import HarnessError
from harness.generate.session import PhaseName, Session
from harness.measure.comparison import LanguageModel, Race, Side
from harness.measure.statistics import Goal
from harness.runtimes.base import Method
from harness.subject import Subject
from harness.suites.mutants.faults import BOTH, MULTI, PTE, SINGLE, Complaints, Mutant, fault
from harness.suites.mutants.judge import sound

RUNTIME = "mil:widen"
# A busy machine moves no verdict: the sizes are coarse, and a second is a look at the clock, which
# each block takes three times.
COARSE = Goal(detect=0.5, tolerate=0.25, seconds=60)


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


def judge_race(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Race two sides; `gate` has the metrics that are not the same in both, with the reasons."""
    subject = sound(mutant.mode)
    sides = cast("Callable[[Subject], tuple[Side, Side]]", mutant.mutate or equal)
    base, head = sides(subject)
    clock = itertools.count(0.0).__next__
    timed = Race(base, head, COARSE, clock).run(lambda stage: None)
    metrics = [row.metric("time") for row in timed]
    found = [f"{m.name}: {m.verdict}: {m.reason}" for m in metrics if m.verdict != "same"]
    return {"gate": tuple(found)} if found else {}


def equal(subject: Subject) -> tuple[Side, Side]:
    """Return the sound artifact twice."""
    return LanguageModel(subject, RUNTIME), LanguageModel(subject, RUNTIME)


class Repeated:
    """A method that computes several times what it is called for once."""

    def __init__(self, method: Method, times: int) -> None:
        self._method, self._times = method, times
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the last results."""
        for _ in range(self._times - 1):
            self._method(*tensors)
        return self._method(*tensors)


class Slow(LanguageModel):
    """Each call of the phases computes as many times as `times` returns when it is loaded."""

    def __init__(
        self, subject: Subject, phases: Collection[PhaseName], times: Callable[[], int] = lambda: 2
    ) -> None:
        super().__init__(subject, RUNTIME)
        self._phases, self._times = phases, times

    def open(self) -> Session:
        """Open a session whose methods repeat themselves."""
        session, times = super().open(), self._times()
        of_phase = {
            "prefill": session.layout.prefill.method,
            "decode": session.layout.decode.method,
        }
        slow = {of_phase[phase] for phase in self._phases}
        methods: dict[str, Method] = {
            name: Repeated(method, times) if name in slow else method
            for name, method in session.methods.items()
        }
        return Session(methods, session.layout)


class SlowLoad(LanguageModel):
    """The artifact is loaded twice."""

    def open(self) -> Session:
        """Open a session, and open it again."""
        super().open()
        return super().open()


row = partial(fault, room="time", judge=judge_race, kinds=PTE, modes=MULTI, tested=())


@row("calls of twice the time", {"gate": "^prefill: regression: slower: by "}, modes=SINGLE)
def slow_calls(subject: Subject) -> tuple[Side, Side]:
    """Let each call of HEAD's only method compute twice."""
    return _raced(subject, Slow(subject, ["decode"]))


@row("a decode of twice the time", {"gate": "^decode: regression: slower: by "})
def slow_decode(subject: Subject) -> tuple[Side, Side]:
    """Let each call of HEAD's decode compute twice."""
    return _raced(subject, Slow(subject, ["decode"]))


@row("a prefill of twice the time", {"gate": "^prefill: regression: slower: by "})
def slow_prefill(subject: Subject) -> tuple[Side, Side]:
    """Let each call of HEAD's prefill compute twice."""
    return _raced(subject, Slow(subject, ["prefill"]))


@row("a load of twice the time", {"gate": "^load: regression: slower: by "}, modes=BOTH)
def slow_load(subject: Subject) -> tuple[Side, Side]:
    """Let HEAD be loaded twice."""
    return _raced(subject, SlowLoad(subject, RUNTIME))


@row("a time that changes with each load", {"gate": "^decode: inconclusive: "})
def unstable(subject: Subject) -> tuple[Side, Side]:
    """Let each load of one artifact compute once or four times; no verdict may follow."""
    draw = random.Random(7)
    first, second = (Slow(subject, ["decode"], lambda: draw.choice((1, 4))) for _ in range(2))
    return first, second


def _raced(subject: Subject, head: Side) -> tuple[Side, Side]:
    return LanguageModel(subject, RUNTIME), head


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
