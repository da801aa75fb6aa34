"""Judges an artifact by one check, as the conformance suite does."""

from __future__ import annotations

from pathlib import Path

from harness.checks import artifact_checks, run_check
from harness.results import Case
from harness.subject import Subject

RUNTIME = "mil:widen"


def opened(path: Path, sound: Subject) -> Subject:
    """Open an artifact as an export of the same model, with the same options."""
    return Subject(path, sound.checkpoint, sound.params, sound.options, sound.unshared)


def judged(subject: Subject, name: str) -> Case:
    """Run a check; an artifact that is too broken for it gives an `error`, which fails a run."""
    check = artifact_checks()[name]
    return run_check(check, subject, RUNTIME if check.takes_runtime else None, suite="mutants")
