"""How much worse a fact or a figure may be before the gate calls it a regression."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.results import Figure
from harness.results.records import Fact


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
    """`NAME=PERCENT` words as a mapping; raises HarnessError for one that is not so."""
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
                " that is at least 0."
            )
        margins[name] = percent
    return margins


def fact_margin(name: str, value: Fact, overrides: Mapping[str, float]) -> Margin:
    """The margin of a fact; an override applies to a fact that has a better direction."""
    plain = plain_name(name)
    margin = next((row for ending, row in FACTS.items() if plain.endswith(ending)), EXACT)
    if margin == EXACT or not isinstance(value, int | float):
        return EXACT
    return Margin(margin.better, overrides.get(plain, margin.percent))


def figure_margin(name: str, figure: Figure, overrides: Mapping[str, float]) -> Margin:
    """The margin of a figure: the override for its name, else the row of its unit."""
    percent, of_the_machine = FIGURES.get(figure.unit, OTHER_FIGURES)
    return Margin(figure.better, overrides.get(plain_name(name), percent), of_the_machine)


def plain_name(name: str) -> str:
    """A name without the place that `case_from_findings` may have added after `@`."""
    return name.partition("@")[0]
