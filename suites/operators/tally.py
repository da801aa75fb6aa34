"""Adds up what the tests did, per opset and file: cases for the stream, and a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tabulate import tabulate

from harness.results import Case
from suites.operators.selection import Target

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
    """One test's end, a heading of `COLUMNS`; how many values it compared; whether fp16 resolution
    had to do; what went wrong."""

    target: Target
    end: str
    values: int = 0
    at_half: bool = False
    problem: str = ""
    seconds: float = 0.0

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
    """Return the case of a row: `pass` where something predicted and all of it passed."""
    facts = {name.replace(" ", "_"): row.counts[name] for name in COLUMNS}
    names = {"suite": "operators", "check": file, "mode": opset, "runtime": runtime}
    rest = {"facts": facts, "seconds": round(row.seconds, 3), "comparisons": row.values}
    if row.failures:
        shown = "; ".join(row.failures[:_MAX_NAMED])
        reason = f"{len(row.failures)} of {row.tests} tests fail: {shown}"
        return Case(**names, outcome="fail", reason=reason, **rest)
    if not row.counts["predicted"]:
        return Case(**names, outcome="skip", reason="none of its tests predicted", **rest)
    return Case(**names, **rest)


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
