"""What checks found, made into the case of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.errors import HarnessError
from harness.results.figures import Figure
from harness.results.records import NOT_APPLICABLE, Case, Fact
from harness.text import clip

MAX_FAILURES = 10
MAX_SENTENCE = 400

V = TypeVar("V")


@dataclass(frozen=True)
class Finding:
    """One finding: where it was looked, whether all is well there, and what was compared.

    `message` is a sentence when something is wrong. `comparisons` counts what was compared; a
    check whose findings compared nothing has not passed. `facts` are deterministic, `figures`
    measured.
    """

    check: str
    where: str
    ok: bool = True
    message: str = ""
    comparisons: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)


def case_from_findings(
    findings: Iterable[Finding],
    *,
    suite: str,
    check: str,
    fixture: str = NOT_APPLICABLE,
    mode: str = NOT_APPLICABLE,
    runtime: str = NOT_APPLICABLE,
    seconds: float = 0.0,
) -> Case:
    """The case that these findings make.

    It passes when every finding is ok, every figure is within its bound, and something was
    compared; otherwise it fails, and its reason says where. A figure or fact that two findings
    both name is called `name@where`.
    """
    findings = tuple(findings)
    figures = _merged([(finding.where, finding.figures) for finding in findings])
    facts = _merged([(finding.where, finding.facts) for finding in findings])
    comparisons = sum(finding.comparisons for finding in findings)
    failures = [f"{f.where}: {f.message}" if f.where else f.message for f in findings if not f.ok]
    failures += [
        f"{name} is {figure}" for name, figure in figures.items() if not figure.within_bound
    ]
    if comparisons == 0:
        failures.append("nothing was compared")
    return Case(
        suite=suite,
        check=check,
        fixture=fixture,
        mode=mode,
        runtime=runtime,
        outcome="fail" if failures else "pass",
        reason=_sentence(failures),
        comparisons=comparisons,
        figures=figures,
        facts={name: plain_fact(value) for name, value in facts.items()},
        seconds=seconds,
    )


def plain_fact(value: Any) -> Fact:
    """A fact as JSON knows it: numpy's scalars become Python's."""
    return value.item() if hasattr(value, "item") else value


def _merged(named: Sequence[tuple[str, Mapping[str, V]]]) -> dict[str, V]:
    """All values by name; a name with several owners carries the owner's place."""
    owners = Counter(name for _, values in named for name in values)
    merged: dict[str, V] = {}
    for where, values in named:
        for name, value in values.items():
            full = name if owners[name] == 1 else f"{name}@{where}"
            if full in merged:
                raise HarnessError(f"Two findings at {where or 'the same place'} both name {name}.")
            merged[full] = value
    return merged


def _sentence(failures: Sequence[str]) -> str:
    shown = [clip(failure, MAX_SENTENCE) for failure in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        shown.append(f"and {len(failures) - MAX_FAILURES} more")
    return "; ".join(shown)
