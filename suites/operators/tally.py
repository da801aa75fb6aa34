"""Adds up what the tests did, per opset and file: cases for the stream, and a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from tabulate import tabulate

from harness.results import Case, Fact
from harness.suites.impossible import Target

COLUMNS = {
    "predicted": "with a prediction",
    "passed": "passed",
    "at fp16": "of these at fp16 resolution only",
    "no arrays": "of these by the test's own assertions, without comparing arrays",
    "failed": "failed",
    "broken": "failed before a model was loaded",
    "listed": "listed as impossible",
    "upstream": "expected by coremltools to fail",
    "no prediction": "passed, without a prediction",
    "skipped": "skipped by coremltools",
}
"""Heading -> what it counts. `predicted` counts the tests that are judged: those that predicted, or
loaded a model and failed, and are neither listed nor expected to fail."""
_MAX_NAMED = 5


@dataclass(frozen=True)
class Result:
    """The result of one test.

    `end` is a heading of `COLUMNS`, `values` the number of values that were compared, `at_half`
    whether fp16 resolution had to do, `problem` what went wrong.
    """

    target: Target
    end: str
    values: int = 0
    at_half: bool = False
    problem: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values, which xdist can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the result that `to_json` gave."""
        return cls(**(data | {"target": Target(**data["target"])}))

    @property
    def counts(self) -> Counter[str]:
        """What the test adds to its row."""
        counts = Counter({self.end: 1})
        if self.end in ("passed", "failed"):
            counts["predicted"] = 1
        if self.end == "passed" and self.at_half:
            counts["at fp16"] = 1
        if self.end == "passed" and not self.values:
            counts["no arrays"] = 1
        return counts


@dataclass
class Row:
    """The tests of one file and opset."""

    counts: Counter[str] = field(default_factory=Counter)
    tests: int = 0
    values: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Add one test."""
        self.counts += result.counts
        self.tests += 1
        self.seconds += result.seconds
        if result.end == "passed":
            self.values += max(result.values, 1)
        if result.end in ("failed", "broken"):
            self.failures.append(f"{result.target.function}: {result.problem}")


def rows_of(results: Iterable[Result]) -> dict[tuple[str, str], Row]:
    """Return a row per opset and file."""
    rows: dict[tuple[str, str], Row] = defaultdict(Row)
    for result in results:
        rows[result.target.opset, result.target.file].add(result)
    return dict(sorted(rows.items()))


def case_of(opset: str, file: str, row: Row, runtime: str) -> Case:
    """Return the case of a row: `pass` when a test predicted and all that did passed."""
    facts: dict[str, Fact] = {name.replace(" ", "_"): row.counts[name] for name in COLUMNS}
    outcome, reason = "pass", ""
    if row.failures:
        shown = "; ".join(row.failures[:_MAX_NAMED])
        outcome, reason = "fail", f"{len(row.failures)} of {row.tests} tests fail: {shown}"
    elif not row.counts["predicted"]:
        outcome, reason = "skip", "none of its tests predicted"
    return Case(
        "operators",
        check=file,
        mode=opset,
        runtime=runtime,
        outcome=outcome,
        reason=reason,
        comparisons=row.values,
        facts=facts,
        seconds=round(row.seconds, 3),
    )


def opset_table(rows: dict[tuple[str, str], Row]) -> str:
    """Return a table with a row per opset, and what its columns mean."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for (opset, _), row in rows.items():
        totals[opset] += row.counts
        totals["all"] += row.counts
    lines = [
        [opset, *(totals[opset][name] for name in COLUMNS), _share(totals[opset])]
        for opset in sorted(totals, key=lambda name: (name == "all", name))
    ]
    table = tabulate(lines, headers=["opset", *COLUMNS, "passed of predicted"])
    return "\n".join([table, "", *(f"{name}: {text}" for name, text in COLUMNS.items())])


def _share(counts: Counter[str]) -> str:
    return f"{counts['passed'] / counts['predicted']:.2%}" if counts["predicted"] else "-"
