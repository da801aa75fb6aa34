"""A finding of a check, and the case that findings make: equal ones are reported once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from harness.errors import HarnessError
from harness.results.cases import (
    MAX_EVIDENCE,
    NOT_APPLICABLE,
    Case,
    Fact,
    RecordedFinding,
)
from harness.results.figures import Figure, Histogram
from harness.text import clip

MAX_FAILURES = 10  # in a reason
NOTHING_COMPARED = "N02"
_SHAPE_OF = 2000  # characters of a sentence
_WORDS = re.compile(r"'[^']*'|\[[^][]*\]|[-+.\w]+")  # names, shapes, words
_PARTICULAR = re.compile(r"['\[\d_]")

V = TypeVar("V")


@dataclass(frozen=True)
class Finding:
    """One finding: the place, whether it is right, and the number of comparisons.

    `message` is a sentence if something is wrong. A check whose findings compared nothing has not
    passed. `facts` are deterministic, `figures` and `histograms` are measured. `code` is the row of
    `harness/checks/findings.toml` that a finding belongs to when it is wrong, or when a figure is
    outside its bound. One that is wrong and a `warning` fails only a strict run.
    """

    check: str
    where: str
    ok: bool = True
    message: str = ""
    comparisons: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    code: str = ""
    warning: bool = False
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


def case_from_findings(
    findings: Iterable[Finding],
    *,
    suite: str,
    check: str,
    fixture: str = NOT_APPLICABLE,
    mode: str = NOT_APPLICABLE,
    runtime: str = NOT_APPLICABLE,
    seconds: float = 0.0,
    strict: bool = False,
    once: Callable[[str], bool] = lambda code: False,
) -> Case:
    """Make a case of findings; a `strict` one takes warnings for failures.

    It passes when every finding is ok or a warning, every figure is within its bound, and something
    was compared; otherwise it fails, and its reason names the places, and of each place the first
    figure outside its bound. If two findings have a figure or a fact of one name, both are renamed
    to `name@where`. Equal findings are recorded once, and all of a code that `once` is true of.
    """
    findings = tuple(findings)
    figures = _merged([(finding.where, finding.figures) for finding in findings])
    facts = _merged([(finding.where, finding.facts) for finding in findings])
    comparisons = sum(finding.comparisons for finding in findings)
    wrong: list[RecordedFinding] = []
    for one in findings:
        warns = one.warning and not strict
        missed = _missed_bounds(one, figures)
        said = [] if one.ok else [one.message]
        if missed and not (said and warns):  # one fault, whether told by a sentence or a figure
            said, warns = [*said, missed], False
        elif missed:
            wrong.append(RecordedFinding(one.code, one.where, missed))
        if said:
            wrong.append(RecordedFinding(one.code, one.where, "; ".join(said), warns))
    if comparisons == 0:
        wrong.append(RecordedFinding(NOTHING_COMPARED, "", "nothing was compared"))
    failures = [finding.sentence for finding in wrong if not finding.warning]
    return Case(
        suite=suite,
        check=check,
        fixture=fixture,
        mode=mode,
        runtime=runtime,
        outcome="fail" if failures else "pass",
        reason=reason_of(failures),
        findings=_folded(wrong, once),
        comparisons=comparisons,
        figures=figures,
        facts={name: plain_fact(value) for name, value in facts.items()},
        histograms=_merged([(finding.where, finding.histograms) for finding in findings]),
        seconds=seconds,
    )


def _folded(
    findings: Iterable[RecordedFinding], once: Callable[[str], bool]
) -> tuple[RecordedFinding, ...]:
    """Return findings with equal ones made one, which has all their places; warnings come last.

    Two are equal when their code and their evidence are, apart from names and numbers.
    """
    alike: dict[tuple[str, bool, str], list[RecordedFinding]] = {}
    for one in sorted(findings, key=lambda one: one.warning):
        shape = "" if once(one.code) else _shape(one)
        key = one.code, one.warning, shape if one.code else one.sentence
        alike.setdefault(key, []).append(one)
    return tuple(_joined(group) for group in alike.values())


def _shape(finding: RecordedFinding) -> str:
    """Return the evidence without its place, names and numbers."""
    text = finding.evidence
    if len(text) > _SHAPE_OF:
        text = text[:_SHAPE_OF].rpartition(" ")[0]
    text = text.replace(finding.place or "\0", "")
    return _WORDS.sub(lambda word: "#" if _PARTICULAR.search(word[0]) else word[0], text)


def _joined(group: Sequence[RecordedFinding]) -> RecordedFinding:
    """Return the first of equal findings with the places of all, each once."""
    first, *others = dict.fromkeys(one.place for one in group)
    return replace(group[0], place=first, count=1 + len(others), others=tuple(others))


def _missed_bounds(finding: Finding, figures: Mapping[str, Figure]) -> str:
    """Return a sentence on a finding's figures outside their bounds, by the names of the case.

    The first speaks for the others, which often are the same error in other units.
    """
    own = set(map(id, finding.figures.values()))
    missed = {n: f for n, f in figures.items() if id(f) in own and not f.within_bound}
    if not missed:
        return ""
    name, figure = next(iter(missed.items()))
    more = f", and {len(missed) - 1} more of its figures miss their bounds"
    return f"{name} is {figure}{more if len(missed) > 1 else ''}"


def plain_fact(value: Any) -> Fact:
    """Return a fact as a value of JSON: numpy's scalars become Python's."""
    fact: Fact = value.item() if hasattr(value, "item") else value
    return fact


def _merged(named: Sequence[tuple[str, Mapping[str, V]]]) -> dict[str, V]:
    """Merge values by name; a name with several owners gets the owner's place as a suffix."""
    owners = Counter(name for _, values in named for name in values)
    merged: dict[str, V] = {}
    for where, values in named:
        for name, value in values.items():
            full = name if owners[name] == 1 else f"{name}@{where}"
            if full in merged:
                raise HarnessError(f"Two findings at {where or 'the same place'} both name {name}")
            merged[full] = value
    return merged


def reason_of(failures: Sequence[str]) -> str:
    """Return the reason of a case: its first failures, long ones cut, and the number of others."""
    shown = [clip(failure, MAX_EVIDENCE) for failure in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        shown.append(f"and {len(failures) - MAX_FAILURES} more")
    return "; ".join(shown)
