"""Judges an artifact by one check, as the conformance suite does, and says how it went."""

from __future__ import annotations

from pathlib import Path

from harness.checks import CHECKS
from harness.errors import HarnessError
from harness.results import Case, case_from_findings
from harness.subject import Subject

RUNTIME = "mil:widen"


def opened(path: Path, sound: Subject) -> Subject:
    """Open an artifact as an export of the same model, with the same options."""
    return Subject(path, sound.checkpoint, sound.params, sound.options, sound.unshared)


def judged(subject: Subject, check: str) -> Case:
    """Run a check; an artifact too broken to be looked at is an `error`, which fails a run."""
    runtime = RUNTIME if CHECKS[check].takes_runtime else None
    names = {"suite": "mutants", "check": check, "runtime": runtime or "-"}
    try:
        return case_from_findings(CHECKS[check].findings(subject, runtime), **names)
    except HarnessError as error:
        return Case(**names, outcome="error", stage="check", reason=str(error))
