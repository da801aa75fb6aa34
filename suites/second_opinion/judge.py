"""Asks a child for what three executors gave, and judges it by the recorded differences."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.results import Case, Figure
from harness.results.machine import installed_versions
from harness.suites.expendable import Expendable
from harness.suites.second_opinion.models import SUBJECTS
from harness.text import parse_toml

EXECUTORS = ("pytorch", "mil", "core-ai")
PRECISIONS = ("fp32", "fp16")
SECONDS = 300.0  # of the processor's time, for a group in one precision
_PACKAGES = ("coreai-core", "coreai-torch")
_RECORD = Path(__file__).with_name("differences.toml")
_KEYS = {"executor", "subjects", "precisions", "kinds", "refused", "reason"}
Found = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Why an executor differs from fp64 at some kinds of values, or refuses a subject.

    `refused` is a part of the converter's message; otherwise `kinds` are those that differ.
    """

    executor: str
    subjects: tuple[str, ...]
    precisions: tuple[str, ...]
    reason: str
    kinds: frozenset[str] = frozenset()
    refused: str = ""


def read_differences(path: Path = _RECORD) -> tuple[Difference, ...]:
    """Read the record; raises HarnessError for a row that names what does not exist."""
    rows = parse_toml(path.read_bytes()).get("difference", [])
    return tuple(_row(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))


def _row(row: dict[str, Any], where: str) -> Difference:
    if unknown := row.keys() - _KEYS:
        raise HarnessError(f"{where} has unknown keys: {', '.join(sorted(unknown))}")
    executor, subjects = row.get("executor"), row.get("subjects", [])
    precisions, kinds = row.get("precisions", list(PRECISIONS)), row.get("kinds", [])
    if executor not in EXECUTORS:
        raise HarnessError(f"{where}: the executor {executor!r} is none of {', '.join(EXECUTORS)}")
    for name in subjects:
        if name not in SUBJECTS:
            raise HarnessError(f"{where}: there is no subject {name!r}")
        if strange := set(kinds) - set(SUBJECTS[name].kinds):
            raise HarnessError(f"{where}: {name} has no values of kind {', '.join(strange)}")
    if not subjects or not row.get("reason") or bool(kinds) == bool(row.get("refused")):
        raise HarnessError(f"{where} needs subjects, a reason, and either kinds or refused")
    if not set(precisions) <= set(PRECISIONS):
        raise HarnessError(f"{where}: precisions are {' and '.join(PRECISIONS)}")
    reason = " ".join(row["reason"].split())
    refused = row.get("refused", "")
    return Difference(
        executor, tuple(subjects), tuple(precisions), reason, frozenset(kinds), refused
    )


class Judge:
    """Answers with the cases of subjects; a child runs all `subjects` of a group at once."""

    def __init__(self, differences: tuple[Difference, ...], subjects: Iterable[str]) -> None:
        self._differences = differences
        self._groups: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(subjects):
            self._groups[SUBJECTS[name].group].append(name)
        self._child = Expendable(
            "harness.suites.second_opinion.child", "the executors", "running", SECONDS
        )
        self._found: dict[tuple[str, str], dict[str, dict[str, Found]]] = {}

    def case(self, subject: str, precision: str, executor: str) -> Case:
        """Return the case of one executor; the first case of a group has the group's duration."""
        start = time.monotonic()
        key = SUBJECTS[subject].group, precision
        if key not in self._found:
            self._found[key] = self._asked(self._groups[key[0]], precision, EXECUTORS)
        seconds = round(time.monotonic() - start, 3)
        found = self._found[key][executor][subject]
        return case_of(subject, precision, executor, found, self._differences, seconds)

    def end(self) -> None:
        """End the child."""
        self._child.end()

    def _asked(
        self, subjects: Sequence[str], precision: str, executors: Sequence[str]
    ) -> dict[str, dict[str, Found]]:
        """Ask for a batch; when the child does not answer, ask for each executor, then halves."""
        request = {"subjects": list(subjects), "precision": precision, "executors": list(executors)}
        doing = f"with {subjects[0]} to {subjects[-1]} ({precision})"
        whole = self._child.ask(request, doing)
        if "outcome" not in whole:
            return whole
        if len(executors) > 1:
            return {
                name: answer
                for one in executors
                for name, answer in self._asked(subjects, precision, [one]).items()
            }
        if len(subjects) == 1:
            return {executors[0]: {subjects[0]: whole}}
        half, (one,) = len(subjects) // 2, executors
        parts = (subjects[:half], subjects[half:])
        answers = [self._asked(part, precision, executors)[one] for part in parts]
        return {one: answers[0] | answers[1]}


def case_of(
    subject: str,
    precision: str,
    executor: str,
    found: Found,
    differences: tuple[Difference, ...],
    seconds: float = 0.0,
) -> Case:
    """Return the case of what an executor gave.

    All that differs must be recorded, and all that is recorded must differ.
    """
    rows = [
        one
        for one in differences
        if one.executor == executor and subject in one.subjects and precision in one.precisions
    ]
    judged = found if "outcome" in found else _judged(found, rows)
    unit = "ULP" if SUBJECTS[subject].measure == "ulp" else ""
    bound = SUBJECTS[subject].bound(precision)
    versions = installed_versions(_PACKAGES) if executor == "core-ai" else {}
    return Case(
        "second-opinion",
        precision,
        fixture=subject,
        runtime=executor,
        outcome=judged["outcome"],
        reason=judged.get("reason", ""),
        stage=judged.get("stage", ""),
        signal=judged.get("signal", ""),
        issue=judged.get("issue", ""),
        comparisons=found.get("compared", 0),
        figures={
            kind: Figure(value, unit, bound, floor=bound)
            for kind, value in found.get("errors", {}).items()
        },
        facts={"operation": SUBJECTS[subject].group, **versions},
        seconds=seconds,
    )


def _judged(found: Found, rows: list[Difference]) -> dict[str, str]:
    """Return outcome, reason and issue."""
    refusals = [row for row in rows if row.refused]
    reasons = "; ".join(dict.fromkeys(row.reason for row in rows))
    if "refused" in found:
        message = f"its converter refuses: {found['refused']}"
        if any(row.refused in found["refused"] for row in refusals):
            return {"outcome": "skip", "reason": message}
        return {"outcome": "fail", "reason": f"{message}; record it in {_RECORD.name}"}
    problems = found["problems"]
    if refusals:
        return _gone(f"it takes the subject, and {_RECORD.name} records a refusal")
    recorded = frozenset().union(*(row.kinds for row in rows))
    if new := [kind for kind in problems if kind not in recorded]:
        told = "; ".join(f"{kind}: {problems[kind]}" for kind in new)
        return {"outcome": "fail", "reason": told}
    if gone := sorted(recorded - problems.keys()):
        return _gone(f"{', '.join(gone)} no longer differ, and {_RECORD.name} records it")
    if not found["compared"]:
        return {"outcome": "fail", "reason": "nothing was compared"}
    if problems:
        told = "; ".join(f"{kind}: {problem}" for kind, problem in problems.items())
        return {"outcome": "known", "issue": reasons, "reason": told}
    return {"outcome": "pass", "reason": ""}


def _gone(reason: str) -> dict[str, str]:
    return {"outcome": "fail", "reason": f"{reason}: remove the row"}
