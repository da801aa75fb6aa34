"""Judges an artifact by one check, as the conformance suite does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.checks import Check, artifact_checks, run_check, value_checks
from harness.results import Case
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants.edit import Export

OF_BYTES = (
    *("owners", "references", "metadata-names", "function-names", "package-files", "descriptions"),
    *("types", "compile-specs", "memory-plan", "program", "copies"),
)
"""The checks that execute nothing and need no reference, and judge one part each."""
_OF_PTES = ("compile-specs", "memory-plan")  # a folder has neither

Mutation = Callable[[Export], object]  # changes an export in place
MakeMutant = Callable[[Mutation, str], Subject]  # from a mutation and a mode


class Sources:
    """The sound subjects, by mode; each stays open, because they are small."""

    def __init__(self) -> None:
        self._opened: dict[str, Subject] = {}

    def __getitem__(self, mode: str) -> Subject:
        if mode not in self._opened:
            self._opened[mode] = Subjects(lambda stage: None).get("tiny", mode)
        return self._opened[mode]


def opened(path: Path, sound: Subject) -> Subject:
    """Open an artifact as an export of the same model, with the same options."""
    return Subject(path, sound.checkpoint, sound.params, sound.options, sound.unshared)


def judged(subject: Subject | Callable[[], Subject], check: str | Check[Subject]) -> Case:
    """Run a check, given itself or by name; fail with the traceback when the check has a bug.

    The outcome is `error` for an artifact that is too broken to be opened or to be looked at.
    """
    if isinstance(check, str):
        known = artifact_checks() | value_checks()
        assert check in known, f"no check '{check}': @check registers it in a module of the room"
        check = known[check]
    case = run_check(check, subject, REFERENCE if check.takes_runtime else None, suite="mutants")
    assert not case.traceback, case.traceback
    return case


def complaints(subject: Subject) -> dict[str, str]:
    """Return the reasons of the checks of bytes that do not pass; most of them must judge it."""
    cases = [judged(subject, name) for name in OF_BYTES]
    skipped = [case.check for case in cases if case.outcome == "skip"]
    assert len(skipped) <= len(_OF_PTES), skipped
    return {case.check: case.reason for case in cases if case.outcome not in ("pass", "skip")}
