"""How much worse a value may be, verdicts on two values of one metric, and waivers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from typing import TypeGuard

from harness.errors import HarnessError
from harness.results import Case, Fact, Figure
from harness.results.figures import number, with_unit
from harness.text import did_you_mean

# One of VERDICTS, and why.
Verdict = tuple[str, str]

VERDICTS = {
    "regression": "worse in HEAD: the gate fails",
    "changed": "another in HEAD, neither better nor worse: the gate fails unless it is accepted",
    "failing": "fails or misses its bound in both runs, which is not a regression",
    "waived": "worse or changed, and waived: an issue is open, and the waiver has not expired",
    "inconclusive": "undecided: the two cannot be compared in this, or it is too noisy",
    "accepted": "changed, and accepted by name",
    "better": "better in HEAD",
    "unjudged": "a time of another session, or a memory of another machine: it decides nothing",
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
    `of_the_machine` means nothing when the two runs come from different ones. If the value has a
    bound, `by_room` judges it by the room to the bound, instead of by `percent`. A value that is
    worse by more than `percent`, but by no more than `unjudged`, decides nothing.
    """

    better: str
    percent: float
    of_the_machine: bool = False
    by_room: bool = False
    unjudged: float = 0.0


# A number whose name ends so has a better direction; a change of any other fact must be accepted.
FACTS = {
    # A package's bytes move with the length of the names inside.
    "bytes": Margin("lower", 1.0),
    # Where the oracle's margin decides whether a token is compared, a few may come and go.
    "comparisons": Margin("higher", 5.0),
    "decided": Margin("higher", 5.0),
    "operations": Margin("lower", 0.0),
    "operations over fp16": Margin("lower", 0.0),
    "crossed rows": Margin("lower", 0.0),
    "matched tensors": Margin("higher", 0.0),
    "sequences": Margin("higher", 0.0),
}
EXACT = Margin("exact", 0.0)

# unit -> (percent, of the machine), for figures that are not judged by the room to their bound.
FIGURES = {
    "s": (10.0, True),
    "ms": (10.0, True),
    "us": (10.0, True),
    "s/token": (10.0, True),
    "ms/token": (10.0, True),
    "tokens/s": (10.0, True),
    "x": (10.0, True),  # one time over another
    "bytes": (5.0, True),  # measured memory; a size that depends on nothing is a fact
    "MB": (5.0, True),
    "MiB": (5.0, True),
    "dB": (2.0, False),
    "%": (1.0, False),
}
OTHER_FIGURES = (10.0, False)
MEMORY = ("bytes", "MB", "MiB")
# Times of two sessions on one machine, of which one was busy, differ by less than a factor of two:
# in percent of BASE, by the better direction.
SESSIONS_PERCENT = {"lower": 100.0, "higher": 50.0, "exact": 0.0}
# A figure with a bound regresses when it takes more than this share of the room that BASE left
# between value and bound, and the change exceeds the noise of the precision.
HEADROOM_PERCENT = 25.0
# Decibels measure a mean square, which noise changes less than a largest error.
NOISE_IN_DECIBELS = 3.0
# What the gate compares of two artifacts, in this order.
TIERS = ("structure", "numbers", "time")
# The name by which a looser bound is accepted.
BOUNDS = "bounds"
# The names by which changes are accepted: of artifacts, and of any two result files.
ACCEPTABLE = (
    *("weights", "tables", "constants", "program", "options", "interface", "names", "identifiers"),
    *("metadata", "outputs", BOUNDS),
)


def check_acceptable(names: Iterable[str], facts: Sequence[str] = ()) -> None:
    """Raise HarnessError for a name by which no change can be accepted.

    Those of artifacts hold for result files, too, as one command line may serve both; result files
    have `facts` besides.
    """
    known = (*ACCEPTABLE, *facts)
    for name in names:
        if name not in known:
            raise HarnessError(
                f"--accept {name}: no change has this name; {did_you_mean(name, known)}"
                f"choose from {', '.join(known)}"
            )


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
    """Return the margin of a figure: the override for its name, else the row of its unit.

    Without an override, the room to the bound decides, unless the figure is of the machine.
    """
    percent, of_the_machine = FIGURES.get(figure.unit, OTHER_FIGURES)
    if plain_name(name) in overrides:
        return Margin(figure.better, overrides[plain_name(name)], of_the_machine)
    by_room = not of_the_machine and figure.better != "exact"
    time = of_the_machine and figure.unit not in MEMORY
    unjudged = SESSIONS_PERCENT[figure.better] if time else 0.0
    return Margin(figure.better, percent, of_the_machine, by_room, unjudged)


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
    """Return the verdict on a deterministic fact.

    One without a better direction that is not equal has changed: a user may accept it.
    """
    # In Python True == 1; in a stream they are two different facts.
    if base == head and isinstance(base, bool) == isinstance(head, bool):
        return "same", ""
    if margin.better == "exact" or not (_is_number(base) and _is_number(head)):
        return "changed", "a deterministic fact changed"
    return change_verdict(float(base), float(head), margin)


def figure_verdict(base: Figure, head: Figure, margin: Margin) -> Verdict:
    """Return the verdict on a measured figure; NaN and infinities in HEAD are regressions.

    A BASE that has no bound yet is judged by the bound of HEAD. A change for the worse that is no
    larger than the spreads of both runs' samples together is inconclusive: it may be noise.
    """
    if (base.unit, base.better) != (head.unit, head.better):
        return "regression", "its unit or its better direction changed: give it another name"
    if not base.finite:
        if not head.finite:
            return "failing", "not a finite number in both"
        return "inconclusive", "BASE is not a finite number"
    if not head.finite:
        return "regression", "HEAD is not a finite number"
    if base.bound is None:
        base = replace(base, bound=head.bound, floor=head.floor)
    if base.within_bound and head.bound is not None and not head.within_bound:
        return "regression", f"outside its bound, {with_unit(head.bound, head.unit)}"
    if margin.by_room and base.bound is not None:
        judge = _headroom_verdict if base.within_bound else _verdict_beyond_bound
        return judge(base, head)
    verdict, reason = change_verdict(base.value, head.value, margin)
    if verdict == "regression" and margin.unjudged:
        wide = replace(margin, percent=margin.unjudged)
        if change_verdict(base.value, head.value, wide)[0] == "same":
            return "unjudged", f"{reason}; two sessions differ so: time both artifacts in one"
    spread = (base.spread or 0.0) + (head.spread or 0.0)
    if verdict == "regression" and abs(head.value - base.value) <= spread:
        return "inconclusive", f"{reason}, but within the samples' spread"
    return verdict, reason


def _headroom_verdict(base: Figure, head: Figure) -> Verdict:
    """Return the verdict on two figures within their bounds, by the room that BASE left.

    A bound may move by twice the noise, because it may be measured; one that is looser has changed.
    """
    assert base.bound is not None
    sign = 1.0 if base.better == "lower" else -1.0
    floor = head.floor if base.floor is None else base.floor
    decibels = base.unit == "dB"
    noise = 0.0 if floor is None else NOISE_IN_DECIBELS if decibels else abs(floor)
    if head.bound is None or sign * (head.bound - base.bound) > 2 * noise:
        new = "none" if head.bound is None else with_unit(head.bound, head.unit)
        return "changed", f"its bound is looser: {with_unit(base.bound, base.unit)} -> {new}"
    ours, theirs = base.value, head.value
    if decibels and floor is not None:
        ours, theirs = min(ours, floor), min(theirs, floor)
    rise = sign * (theirs - ours)
    room = sign * (base.bound - (ours if rise > 0 else theirs))
    if abs(rise) <= noise or abs(rise) * 100 <= HEADROOM_PERCENT * room:
        return "same", "" if base.value == head.value else "within noise or the tolerated share"
    if rise < 0:
        return "better", ""
    share = f"{rise / room:.0%}" if room > 0 else "all"
    return "regression", (
        f"takes {share} of the room to its bound, {with_unit(base.bound, base.unit)};"
        f" {HEADROOM_PERCENT:g} % is tolerated"
    )


def _verdict_beyond_bound(base: Figure, head: Figure) -> Verdict:
    """Return the verdict on a figure that misses its bound in BASE: it may not become twice as bad.

    Beyond its bound, an error may be as chaotic as the defect that causes it.
    """
    if head.within_bound:
        return "better", "within its bound again"
    if base.unit == "dB":
        doubled = base.value - head.value > 2 * NOISE_IN_DECIBELS
    else:
        doubled = (
            head.value > 2 * base.value if base.better == "lower" else 2 * head.value < base.value
        )
    if doubled:
        return "regression", "misses its bound in both, and is more than twice as bad"
    return "failing", "misses its bound in both"


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


@dataclass(frozen=True)
class Waiver:
    """An issue because of which metrics may be worse, until the day `expires` is over.

    `case` and `metric` are patterns of the case's id and the metric's name: `*` is any text, `?`
    any character; brackets have no meaning of their own.
    """

    case: str
    issue: str
    expires: date
    metric: str = "*"

    def matches(self, case: str, metric: str) -> bool:
        """Return whether the waiver is for this metric of this case."""
        pairs = ((case, self.case), (metric, self.metric))
        return all(fnmatchcase(text, pattern.replace("[", "[[]")) for text, pattern in pairs)

    def __str__(self) -> str:
        return f"the waiver of {self.case}, {self.metric} ({self.issue}, until {self.expires})"


def _is_number(value: Fact) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
