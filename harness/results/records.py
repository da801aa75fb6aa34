"""The records of a run: a header, one record per case, a footer; and the run that they make."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from harness.errors import HarnessError
from harness.results.figures import Figure
from harness.results.machine import installed_versions, project_state, this_machine
from harness.results.outcomes import DETAILS, OUTCOMES

SCHEMA = 1
NOT_APPLICABLE = "-"
NAME_PARTS = ("suite", "check", "fixture", "mode", "runtime")
# What separates the parts of an id must not occur in one, or two cases could share an id.
_NAME = re.compile(r"[^\[\],\x00-\x1f\x7f]{1,200}")

Fact = bool | int | float | str


@dataclass(frozen=True)
class Header:
    """What a run depends on: when, with which versions, on what machine, with which options."""

    started: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    project: Mapping[str, Any]

    @classmethod
    def here(cls, options: Mapping[str, Any]) -> Header:
        """The header of a run that starts now, on this machine, in this checkout."""
        return cls(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=installed_versions(),
            machine=this_machine(),
            options=options,
            project=project_state(),
        )

    def to_json(self) -> dict[str, Any]:
        """The header as a JSON object."""
        return {"type": "header", "schema": SCHEMA} | {
            "started": self.started,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "options": dict(self.options),
            "project": dict(self.project),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        """The header that `to_json` wrote; `data` has been validated against the schema."""
        names = ("started", "versions", "machine", "options", "project")
        return cls(**{name: data[name] for name in names})


@dataclass(frozen=True)
class Case:
    """One case: which check, on what, by which runtime, with what outcome.

    A part of the name that does not apply is `-`. `facts` are deterministic (the gate compares
    them exactly), `figures` are measured. `seconds` is what the case took.

    Raises HarnessError for an unknown outcome, an outcome that lacks what it must say, and a
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

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise HarnessError(f"Case {self.id}: {problem}")

    @property
    def id(self) -> str:
        """`suite/check[fixture,mode,runtime]`: unique in a run."""
        return f"{self.suite}/{self.check}[{self.fixture},{self.mode},{self.runtime}]"

    @property
    def passes(self) -> bool:
        """Whether a run may hold this case and pass."""
        return OUTCOMES[self.outcome].passes

    @property
    def summary(self) -> str:
        """Why the outcome is what it is, in one sentence: the detail, then the reason."""
        detail = getattr(self, OUTCOMES[self.outcome].detail or "reason")
        return self.reason if detail in self.reason else f"{detail}: {self.reason}"

    def judged_against_known(self, issue: str) -> Case:
        """The case as `suites/known.toml` sees it: a known defect that shows is `known`.

        One that no longer shows is a failure: the entry must go. A skip says nothing either way.
        """
        if self.outcome == "skip":
            return self
        if self.outcome != "pass":
            return replace(self, outcome="known", issue=issue, stage="", signal="")
        return replace(
            self, outcome="fail", reason=f"{issue} no longer shows: remove it from the known issues"
        )

    def to_json(self) -> dict[str, Any]:
        """The case as a JSON object; details that do not belong to the outcome are left out."""
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
        """The case that `to_json` wrote; `data` has been validated against the schema."""
        values = {name: value for name, value in data.items() if name not in ("type", "id")}
        figures = {name: Figure.from_json(figure) for name, figure in data["figures"].items()}
        case = cls(**(values | {"figures": figures}))
        if data["id"] != case.id:
            raise HarnessError(f"The id {data['id']} does not belong to case {case.id}.")
        return case

    def _problems(self) -> Iterable[str]:
        for part in NAME_PARTS:
            if not _NAME.fullmatch(getattr(self, part)):
                yield (
                    f"its {part} is {getattr(self, part)!r}: it must be 1 to 200 characters without"
                    f" brackets and commas, or {NOT_APPLICABLE!r} where it does not apply."
                )
        outcome = OUTCOMES.get(self.outcome)
        if outcome is None:
            yield f"unknown outcome {self.outcome!r}; the outcomes are {', '.join(OUTCOMES)}."
            return
        if outcome.needs_reason and not self.reason:
            yield f"the outcome {self.outcome} needs a reason."
        for detail in DETAILS:
            if bool(getattr(self, detail)) != (detail == outcome.detail):
                verb = "needs" if detail == outcome.detail else "must not have"
                yield f"the outcome {self.outcome} {verb} a {detail}."
        if self.comparisons < 0 or not 0 <= self.seconds < math.inf:
            yield "comparisons and seconds must be finite and at least 0."
        yield from self._problems_of_facts()
        if self.outcome == "pass":
            yield from self._problems_of_a_pass()

    def _problems_of_facts(self) -> Iterable[str]:
        for name, value in self.facts.items():
            if type(value) not in (bool, int, float, str) or value in (math.inf, -math.inf):
                yield f"the fact {name} is {value!r}: a fact is a bool, a finite number or a text."
            elif value != value:
                yield f"the fact {name} is NaN: a fact is a bool, a finite number or a text."

    def _problems_of_a_pass(self) -> Iterable[str]:
        if self.comparisons == 0:
            yield "it passed with 0 comparisons; a check that compared nothing has not passed."
        for name, figure in self.figures.items():
            if not figure.within_bound:
                yield f"it passed although its figure {name} is {figure}."


@dataclass(frozen=True)
class Footer:
    """What the cases of a run add up to. A stream without one is not a result."""

    counts: Mapping[str, int]
    comparisons: int
    seconds: float
    passed: bool

    @classmethod
    def of(cls, cases: Iterable[Case], seconds: float) -> Footer:
        """The footer of these cases.

        A run passes when no case has an outcome that fails it, and something was compared.
        """
        cases = tuple(cases)
        found = Counter(case.outcome for case in cases)
        comparisons = sum(case.comparisons for case in cases)
        compared = any(case.outcome == "pass" for case in cases)
        return cls(
            counts={name: found[name] for name in OUTCOMES},
            comparisons=comparisons,
            seconds=seconds,
            passed=compared and all(case.passes for case in cases),
        )

    def to_json(self) -> dict[str, Any]:
        """The footer as a JSON object."""
        return {"type": "footer", "counts": dict(self.counts)} | {
            "comparisons": self.comparisons,
            "seconds": self.seconds,
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Footer:
        """The footer that `to_json` wrote; `data` has been validated against the schema."""
        names = ("counts", "comparisons", "seconds", "passed")
        return cls(**{name: data[name] for name in names})


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its stream."""

    header: Header
    cases: tuple[Case, ...]
    footer: Footer
