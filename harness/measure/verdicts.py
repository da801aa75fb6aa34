"""Margins, how much worse a value may be; and verdicts on two values of one metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from harness.errors import HarnessError
from harness.results import Case, Fact, Figure
from harness.results.figures import number, with_unit

# One of VERDICTS, and why.
Verdict = tuple[str, str]

VERDICTS = {
    "regression": "worse in HEAD: the gate fails",
    "changed": "another in HEAD, neither better nor worse: the gate fails unless it is accepted",
    "failing": "a case that fails in both runs, which is not a regression",
    "inconclusive": "undecided: the two cannot be compared in this, or it is too noisy",
    "accepted": "changed, and accepted by name",
    "better": "better in HEAD",
    "new": "only HEAD has it",
    "skipped": "a case that neither run executed",
    "same": "no worse than the margin allows",
}

# Outcomes from best to worst; a case that moves to the right has regressed.
RANKS = {"pass": 0, "known": 1, "skip": 2, "fail": 3, "timeout": 3, "error": 3, "crash": 3}


@dataclass(frozen=True)
class Margin:
    """How much worse a value may be, and which way worse is.

    `better` is "lower", "higher" or "exact"; `percent` is of the base's value; a value that is
    `of_the_machine` means nothing when the two runs come from different ones.
    """

    better: str
    percent: float
    of_the_machine: bool = False


# A fact is compared exactly, unless its name ends so. Growing by a little is then allowed,
# shrinking always: a package's bytes move with the length of the names inside.
FACTS = {
    "bytes": Margin("lower", 1.0),
    # Where the oracle's margin decides whether a token is compared, a few may come and go.
    "comparisons": Margin("higher", 5.0),
}
EXACT = Margin("exact", 0.0)

# unit -> (percent, of the machine). A figure's own `better` says which way worse is.
FIGURES = {
    "s": (10.0, True),
    "ms": (10.0, True),
    "us": (10.0, True),
    "s/token": (10.0, True),
    "ms/token": (10.0, True),
    "tokens/s": (10.0, True),
    "bytes": (5.0, True),  # measured memory; a size that depends on nothing is a fact
    "MB": (5.0, True),
    "MiB": (5.0, True),
    "dB": (2.0, False),
    "%": (1.0, False),
}
# Errors near the floor of a precision move with the order of a sum.
OTHER_FIGURES = (10.0, False)


def parse_margins(words: Iterable[str]) -> dict[str, float]:
    """Return `NAME=PERCENT` words as a mapping; raise HarnessError for any other word."""
    margins = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            percent = float(text)
        except ValueError:
            percent = math.nan
        if not name or not 0 <= percent < math.inf:
            raise HarnessError(
                f"--margin {word}: give NAME=PERCENT, the name of a figure or a fact and a number"
                " that is at least 0"
            )
        margins[name] = percent
    return margins


def fact_margin(name: str, value: Fact, overrides: Mapping[str, float]) -> Margin:
    """Return the margin of a fact; an override applies to a fact with a better direction."""
    plain = plain_name(name)
    margin = next((row for ending, row in FACTS.items() if plain.endswith(ending)), EXACT)
    if margin == EXACT or not isinstance(value, int | float):
        return EXACT
    return Margin(margin.better, overrides.get(plain, margin.percent))


def figure_margin(name: str, figure: Figure, overrides: Mapping[str, float]) -> Margin:
    """Return the margin of a figure: the override for its name, else the row of its unit."""
    percent, of_the_machine = FIGURES.get(figure.unit, OTHER_FIGURES)
    return Margin(figure.better, overrides.get(plain_name(name), percent), of_the_machine)


def plain_name(name: str) -> str:
    """Return a name without the suffix `@place` that `case_from_findings` may have added."""
    return name.partition("@")[0]


def outcome_verdict(base: Case, head: Case | None) -> Verdict:
    """Return the verdict on the outcomes of a case of BASE, which HEAD may lack."""
    if head is None:
        return "regression", "HEAD does not have this case"
    if RANKS[head.outcome] > RANKS[base.outcome]:
        return "regression", head.summary
    if RANKS[head.outcome] < RANKS[base.outcome]:
        return "better", ""
    if head.outcome == "skip":
        return "skipped", head.summary
    return ("same" if head.passes else "failing"), head.summary


def fact_verdict(base: Fact, head: Fact, margin: Margin) -> Verdict:
    """Return the verdict on a deterministic fact, which must be equal unless its margin allows."""
    # In Python True == 1; in a stream they are two different facts.
    if base == head and isinstance(base, bool) == isinstance(head, bool):
        return "same", ""
    if margin.better == "exact" or not (_is_number(base) and _is_number(head)):
        return "regression", "a deterministic fact changed"
    return change_verdict(float(base), float(head), margin)


def figure_verdict(base: Figure, head: Figure, margin: Margin) -> Verdict:
    """Return the verdict on a measured figure; NaN and infinities in HEAD are regressions.

    A change for the worse that is no larger than the spreads of both runs' samples together is
    inconclusive: it may be noise.
    """
    if (base.unit, base.better) != (head.unit, head.better):
        return "regression", "its unit or its better direction changed: give it another name"
    if not base.finite:
        return "inconclusive", "BASE is not a finite number"
    if not head.finite:
        return "regression", "HEAD is not a finite number"
    verdict, reason = change_verdict(base.value, head.value, margin)
    spread = (base.spread or 0.0) + (head.spread or 0.0)
    if verdict == "regression" and abs(head.value - base.value) <= spread:
        return "inconclusive", f"{reason}, but within the samples' spread"
    return verdict, reason


def change_verdict(base: float, head: float, margin: Margin) -> Verdict:
    """Return the verdict on two finite values.

    A value that is worse by more than the margin is a regression; one that is better by more than
    the margin is better; any other is the same. If the margin is exact, each change regresses.
    """
    if base == head:
        return "same", ""
    change = (head - base) / abs(base) if base else math.copysign(math.inf, head - base)
    text = f"{change:+.1%}" if math.isfinite(change) else "from 0"
    if margin.better == "exact":
        return "regression", f"{text}, and it must be equal"
    worse = change if margin.better == "lower" else -change
    if worse * 100 > margin.percent:
        return "regression", f"{text}, over the margin of {margin.percent:g} %"
    return ("better" if -worse * 100 > margin.percent else "same"), text


def fact_text(value: Fact) -> str:
    """Return a fact as text."""
    return number(value) if _is_number(value) else str(value)


def figure_text(figure: Figure) -> str:
    """Return a figure's value and unit as text."""
    return with_unit(figure.value, figure.unit)


def _is_number(value: Fact) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
