"""Ways in which a run gets worse, each of which the gate must find and name.

A worsening changes the first case that has what it needs. Add one as a row of `WORSENINGS`: the
metric that the gate must name, and a function from a case to a worse one, or to None when the case
is gone. A case of another kind must raise KeyError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.results import Case, Footer, Run

Worse = Callable[[Case], Case | None]


@dataclass(frozen=True)
class Worsening:
    """One way to get worse: the metric that shows it, and what happens to a case."""

    metric: str
    apply: Worse

    def __call__(self, run: Run) -> tuple[Run, str]:
        """Return a worse run, and the id of the case that changed.

        Raises LookupError when no case of the run has what this worsening needs.
        """
        for index, case in enumerate(run.cases):
            if case.outcome != "pass":
                continue
            try:
                worse = self.apply(case)
            except KeyError:
                continue
            cases = [*run.cases]
            cases[index : index + 1] = [worse] if worse else []
            seconds = run.footer.seconds
            return replace(run, cases=tuple(cases), footer=Footer.of(cases, seconds)), case.id
        raise LookupError(f"no case of the run can get worse in {self.metric}")


def figure(name: str, runtime: str = "mil:widen", **changes: Callable[[float], float]) -> Worse:
    """Change a figure's value or bound; a value beyond its bound fails the case."""

    def apply(case: Case) -> Case:
        if case.runtime not in (runtime, "-"):
            raise KeyError(name)
        old = case.figures[name]
        given: dict[str, Any] = {key: make(getattr(old, key)) for key, make in changes.items()}
        new = replace(old, **given)
        failed: dict[str, Any] = (
            {} if new.within_bound else {"outcome": "fail", "reason": f"{name} is {new}"}
        )
        return replace(case, figures={**case.figures, name: new}, **failed)

    return apply


def fact(name: str, change: Callable[..., bool | float | str]) -> Worse:
    """Change the first fact whose name starts so."""

    def apply(case: Case) -> Case:
        found = next((key for key in case.facts if key.partition("@")[0] == name), name)
        return replace(case, facts={**case.facts, found: change(case.facts[found])})

    return apply


def outcome(name: str, **details: str) -> Worse:
    """Give a case of parity another outcome; nothing was measured then."""

    def apply(case: Case) -> Case:
        if case.check != "parity":
            raise KeyError(case.check)
        more: dict[str, Any] = {"outcome": name, "reason": "seeded", **details}
        return replace(case, comparisons=0, figures={}, facts={}, **more)

    return apply


def without_figure(name: str) -> Worse:
    """Stop measuring a figure."""

    def apply(case: Case) -> Case:
        case.figures[name]
        rest = {key: value for key, value in case.figures.items() if key != name}
        return replace(case, figures=rest)

    return apply


def half_compared(case: Case) -> Case:
    """Compare half of the values."""
    return replace(case, comparisons=case.comparisons // 2)


def gone(case: Case) -> None:
    """Lose the case."""


WORSENINGS = {
    "an error grows twentyfold": Worsening(
        "decode error", figure("decode error", value=lambda value: value * 20)
    ),
    "an error takes half of the room to its bound": Worsening(
        "decode error", figure("decode error", value=lambda value: (value + 1e-5) / 2)
    ),
    "most values are off, none by more than before": Worsening(
        "decode SQNR", figure("decode SQNR", value=lambda value: value - 26)
    ),
    "an error is NaN": Worsening(
        "prefill error", figure("prefill error", value=lambda value: math.nan)
    ),
    "a bound is ten times as loose": Worsening(
        "decode error", figure("decode error", bound=lambda bound: bound * 10)
    ),
    "activations come near fp16's limit": Worsening(
        "margin of squares", figure("margin of squares", value=lambda value: 1 + (value - 1) / 2)
    ),
    "an error is no longer measured": Worsening("caches error", without_figure("caches error")),
    "sharing is lost": Worsening(
        "stored weight bytes", fact("stored weight bytes", lambda value: 2 * value)
    ),
    "the file grows by 2 %": Worsening("pte bytes", fact("pte bytes", lambda n: round(1.02 * n))),
    "a function has one operation more": Worsening(
        "operations", fact("operations", lambda value: value + 1)
    ),
    "a package asks for another opset": Worsening("opset", fact("opset", lambda value: "CoreML9")),
    "half of the values are compared": Worsening("comparisons", half_compared),
    "a case is gone": Worsening("outcome", gone),
    "a case fails": Worsening("outcome", outcome("fail")),
    "a case is skipped": Worsening("outcome", outcome("skip")),
    "a case crashes": Worsening("outcome", outcome("crash", signal="SIGSEGV")),
    "a case is a known defect": Worsening("outcome", outcome("known", issue="issue 1")),
}
