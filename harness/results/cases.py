"""A case: one check of one subject, its outcome, and what it found wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.errors import HarnessError
from harness.results.figures import Figure, Histogram, Profile
from harness.text import clip, counted

NOT_APPLICABLE = "-"
NAME_PARTS = ("suite", "check", "fixture", "mode", "runtime")
# A part of an id must not contain a separator, or two cases could share an id.
_NAME = re.compile(r"[^\[\],\x00-\x1f\x7f]{1,200}")
MAX_FINDINGS = 25  # that a record holds, and the places of each
MAX_PLACES = 20
MAX_PLACE = 200
MAX_EVIDENCE = 400
SHOWN_PLACES, SHOWN_EVIDENCE = 5, 2000  # of a finding on a terminal

Fact = bool | int | float | str


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
class RecordedFinding:
    """Something wrong that a case found, once for all places that show it.

    `code` names its row in `harness/checks/findings.toml`; "" for a check of another suite.
    `place` is the first place ("" for the whole artifact), `others` are more, and `count` is the
    number of all. `evidence` is the sentence at the first place. `meaning` and `remedy` are the
    row's: what is wrong, and what to do. A `warning` fails no case.
    """

    code: str
    place: str
    evidence: str
    warning: bool = False
    count: int = 1
    others: tuple[str, ...] = ()
    meaning: str = ""
    remedy: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """The evidence at each place."""
        places = (self.place, *self.others)
        return tuple(f"{place}: {self.evidence}" if place else self.evidence for place in places)

    @property
    def sentence(self) -> str:
        """The code, the evidence at the first place, and the number of the others."""
        code = f"{self.code} " if self.code else ""
        more = f" (and in {counted(self.count - 1, 'more place')})" if self.count > 1 else ""
        return f"{code}{self.sentences[0]}{more}"

    def parts(self) -> dict[str, str]:
        """Return all that a row says of the finding, by name; nothing without a row.

        The first is the meaning, by the code; then the place, the evidence and the remedy.
        """
        if not self.meaning:
            return {}
        shown = "; ".join(list(filter(None, (self.place, *self.others)))[:SHOWN_PLACES])
        if self.count > 1:
            shown = f"{self.count} places: {shown}"
        if self.count > SHOWN_PLACES:
            shown += f"; and {self.count - SHOWN_PLACES} more"
        return {
            self.code: f"{self.code} {self.meaning}",
            **({"place": shown} if shown else {}),
            "evidence": clip(self.evidence, SHOWN_EVIDENCE),
            "remedy": self.remedy,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object, without what is empty; long texts are cut."""
        others = [clip(place, MAX_PLACE) for place in self.others[: MAX_PLACES - 1]]
        return {
            "code": self.code,
            "place": clip(self.place, MAX_PLACE),
            "evidence": clip(self.evidence, MAX_EVIDENCE),
            "warning": self.warning,
            **({"count": self.count, "others": others} if self.count > 1 else {}),
            **({"meaning": self.meaning, "remedy": self.remedy} if self.meaning else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RecordedFinding:
        """Read the finding that `to_json` wrote; `data` has been validated against the schema."""
        return cls(**({**data} | {"others": tuple(data.get("others", ()))}))


@dataclass(frozen=True)
class Case:
    """One case: a check, its subject, the runtime and the outcome.

    A part of the name that does not apply is `-`. `facts` are deterministic (the gate compares
    them exactly), `figures` are measured. `findings` are what is wrong, in full; `reason` is their
    summary. `seconds` is the duration of the case. `traceback`, of a bug in the harness, is not
    recorded.

    Raises HarnessError for an unknown outcome, an outcome without the field that it needs, and a
    `pass` that compared nothing, or holds a figure outside its bound or a finding other than a
    warning.
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
    findings: tuple[RecordedFinding, ...] = ()
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    profile: Profile | None = None
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

        A skip stays a skip.
        """
        if self.outcome == "skip":
            return self
        if self.outcome != "pass":
            return replace(self, outcome="known", issue=issue, stage="", signal="")
        return self.without_known(issue)

    def without_known(self, issue: str) -> Case:
        """Return the case as a failure: a known defect no longer shows; its entry must go."""
        reason = f"{issue} no longer shows: remove it from the known issues"
        return replace(self, outcome="fail", issue="", reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Return the case as a JSON object, without details that do not belong to the outcome."""
        detail = OUTCOMES[self.outcome].detail
        findings = [finding.to_json() for finding in self.findings[:MAX_FINDINGS]]
        histograms = {name: one.to_json() for name, one in self.histograms.items()}
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
            **({"findings": findings} if findings else {}),
            **({"histograms": histograms} if histograms else {}),
            **({"profile": self.profile.to_json()} if self.profile else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """Read the case that `to_json` wrote; `data` has been validated against the schema."""
        values = {name: value for name, value in data.items() if name not in ("type", "id")}
        figures = {name: Figure.from_json(figure) for name, figure in data["figures"].items()}
        findings = tuple(map(RecordedFinding.from_json, data.get("findings", ())))
        drawn = data.get("histograms", {}).items()
        values |= {"histograms": {name: Histogram.from_json(one) for name, one in drawn}}
        if (profile := data.get("profile")) is not None:
            values["profile"] = Profile.from_json(profile)
        case = cls(**(values | {"figures": figures, "findings": findings}))
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
        for finding in self.findings:
            if not finding.warning:
                yield f"it passed although it found this: {finding.sentence}"
