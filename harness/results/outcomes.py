"""The seven outcomes of a case: what each must say, and whether a run may hold it and pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One outcome.

    `detail` is the field of a record that this outcome alone must fill ("" when none);
    `junit` the element that stands for it in JUnit XML ("" for none); `colour` its ANSI code.
    """

    name: str
    passes: bool
    detail: str
    junit: str
    colour: int
    needs_reason: bool = True


_ROWS = (
    Outcome("pass", True, "", "", 32, needs_reason=False),
    Outcome("fail", False, "", "failure", 31),
    Outcome("skip", True, "", "skipped", 33),
    Outcome("error", False, "stage", "error", 31),
    Outcome("crash", False, "signal", "error", 31),
    Outcome("timeout", False, "", "error", 31),
    Outcome("known", True, "issue", "skipped", 36),
)

OUTCOMES = {outcome.name: outcome for outcome in _ROWS}
DETAILS = tuple(outcome.detail for outcome in _ROWS if outcome.detail)
