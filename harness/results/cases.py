"""A case: the findings of a check about one subject, and one of seven outcomes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from harness.errors import HarnessError
from harness.results.figures import Figure
from harness.text import clip

NOT_APPLICABLE = "-"
NAME_PARTS = ("suite", "check", "fixture", "mode", "runtime")
# A part of an id must not contain a separator, or two cases could share an id.
_NAME = re.compile(r"[^\[\],\x00-\x1f\x7f]{1,200}")
MAX_FAILURES = 10
MAX_SENTENCE = 400

Fact = bool | int | float | str
V = TypeVar("V")


@dataclass(frozen=True)
class Outcome:
    """One outcome.

    `detail` is the field of a record that this outcome alone must fill ("" for none), `junit` its
    element in JUnit XML ("" for none), `colour` its ANSI code.
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


@dataclass(frozen=True)
class Case:
    """One case: a check, its subject, the runtime and the outcome.

    A part of the name that does not apply is `-`. `facts` are deterministic (the gate compares
    them exactly), `figures` are measured. `seconds` is the duration of the case.

    Two fields are not recorded, but help those who run the case: `failures` holds in full every
    failure that `reason` summarises; `traceback` belongs to a bug in the harness.

    Raises HarnessError for an unknown outcome, an outcome without the field that it needs, and a
    `pass` that compared nothing or holds a figure outside its bound.
    """

    suite: str
    check: str
    fixture: str = NOT_APPLICABLE
    mode: str = NOT_APPLICABLE
    runtime: str = NOT_APPLICABLE
    outcome: str = "pass"
    reason: str = ""
    stage: str = ""
    signal: str = ""
    issue: str = ""
    comparisons: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    seconds: float = 0.0
    failures: tuple[str, ...] = field(default=(), compare=False)
    traceback: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise HarnessError(f"Case {self.id}: {problem}")

    @property
    def id(self) -> str:
        """`suite/check[fixture,mode,runtime]`: unique in a run."""
        return f"{self.suite}/{self.check}[{self.fixture},{self.mode},{self.runtime}]"

    @property
    def passes(self) -> bool:
        """Whether a run with this case can pass."""
        return OUTCOMES[self.outcome].passes

    @property
    def summary(self) -> str:
        """The cause of the outcome in one sentence: the detail, then the reason."""
        detail = getattr(self, OUTCOMES[self.outcome].detail or "reason")
        return self.reason if detail in self.reason else f"{detail}: {self.reason}"

    def judged_against_known(self, issue: str) -> Case:
        """Return the case of a known defect: a failure becomes `known`, a pass a failure.

        A pass means that the defect no longer shows, so that its entry must be removed. A skip
        stays a skip.
        """
        if self.outcome == "skip":
            return self
        if self.outcome != "pass":
            return replace(self, outcome="known", issue=issue, stage="", signal="")
        return replace(
            self, outcome="fail", reason=f"{issue} no longer shows: remove it from the known issues"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the case as a JSON object, without details that do not belong to the outcome."""
        detail = OUTCOMES[self.outcome].detail
        return {
            "type": "case",
            "id": self.id,
            **{name: getattr(self, name) for name in NAME_PARTS},
            "outcome": self.outcome,
            "reason": self.reason,
            **({detail: getattr(self, detail)} if detail else {}),
            "comparisons": self.comparisons,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "facts": dict(self.facts),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """Read the case that `to_json` wrote; `data` has been validated against the schema."""
        values = {name: value for name, value in data.items() if name not in ("type", "id")}
        figures = {name: Figure.from_json(figure) for name, figure in data["figures"].items()}
        case = cls(**(values | {"figures": figures}))
        if data["id"] != case.id:
            raise HarnessError(f"The id {data['id']} does not belong to case {case.id}")
        return case

    def _problems(self) -> Iterable[str]:
        for part in NAME_PARTS:
            if not _NAME.fullmatch(getattr(self, part)):
                yield (
                    f"its {part} is {getattr(self, part)!r}: it must be 1 to 200 characters without"
                    f" brackets and commas, or {NOT_APPLICABLE!r} where it does not apply"
                )
        outcome = OUTCOMES.get(self.outcome)
        if outcome is None:
            yield f"unknown outcome {self.outcome!r}; the outcomes are {', '.join(OUTCOMES)}"
            return
        if outcome.needs_reason and not self.reason:
            yield f"the outcome {self.outcome} needs a reason"
        for detail in DETAILS:
            if bool(getattr(self, detail)) != (detail == outcome.detail):
                verb = "needs" if detail == outcome.detail else "must not have"
                yield f"the outcome {self.outcome} {verb} a {detail}"
        if self.comparisons < 0 or not 0 <= self.seconds < math.inf:
            yield "comparisons and seconds must be finite and at least 0"
        yield from self._problems_of_facts()
        if self.outcome == "pass":
            yield from self._problems_of_a_pass()

    def _problems_of_facts(self) -> Iterable[str]:
        for name, value in self.facts.items():
            if type(value) not in (bool, int, float, str) or value in (math.inf, -math.inf):
                yield f"the fact {name} is {value!r}: a fact is a bool, a finite number or a text"
            elif value != value:
                yield f"the fact {name} is NaN: a fact is a bool, a finite number or a text"

    def _problems_of_a_pass(self) -> Iterable[str]:
        if self.comparisons == 0:
            yield "it passed with 0 comparisons; a check that compared nothing has not passed"
        for name, figure in self.figures.items():
            if not figure.within_bound:
                yield f"it passed although its figure {name} is {figure}"


@dataclass(frozen=True)
class Finding:
    """One finding: the place, whether it is right, and the number of comparisons.

    `message` is a sentence if something is wrong. A check whose findings compared nothing has not
    passed. `facts` are deterministic, `figures` are measured.
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
    """Make a case of findings.

    It passes when every finding is ok, every figure is within its bound, and something was
    compared; otherwise it fails, and its reason names the places, and of each place the first
    figure outside its bound. If two findings have a figure or a fact of one name, both are renamed
    to `name@where`.
    """
    findings = tuple(findings)
    figures = _merged([(finding.where, finding.figures) for finding in findings])
    facts = _merged([(finding.where, finding.facts) for finding in findings])
    comparisons = sum(finding.comparisons for finding in findings)
    failures = [f"{f.where}: {f.message}" if f.where else f.message for f in findings if not f.ok]
    failures += [text for finding in findings if (text := _missed_bounds(finding, figures))]
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
        failures=tuple(failures),
        comparisons=comparisons,
        figures=figures,
        facts={name: plain_fact(value) for name, value in facts.items()},
        seconds=seconds,
    )


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


def _sentence(failures: Sequence[str]) -> str:
    shown = [clip(failure, MAX_SENTENCE) for failure in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        shown.append(f"and {len(failures) - MAX_FAILURES} more")
    return "; ".join(shown)
