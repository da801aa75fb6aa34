"""Makes mutants of the fixture `tiny`'s exports and judges them, as the conformance suite does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from harness.checks import Check, artifact_checks, run_check, value_checks
from harness.checks.findings import causes_only
from harness.results import Case
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants.edit import Export, FolderExport, Mutation, touch_everything
from harness.suites.mutants.faults import FOLDER, Complaints, Mutant

OF_BYTES = (
    *("owners", "references", "metadata-names", "function-names", "package-files", "descriptions"),
    *("types", "compile-specs", "memory-plan", "program", "copies"),
)
"""The checks that execute nothing and need no reference, and judge one part each."""
_OF_PTES = ("compile-specs", "memory-plan")  # a folder has neither
CONTROL = "control of "
"""How the name of a case of a sound artifact starts."""
MakeMutant = Callable[[Mutation, str], Subject]  # from a mutation and a mode
_EXPORTS = {".pte": "tiny", "folder": "coreml:tiny"}


@functools.cache
def sound(mode: str, kind: str = ".pte") -> Subject:
    """Return the sound subject of a mode and a kind; it stays open, because it is small."""
    return Subjects(lambda stage: None).get(_EXPORTS[kind], mode)


def opened(path: Path, sound: Subject) -> Subject:
    """Open an artifact as an export of the same model, with the same options."""
    return Subject(path, sound.checkpoint, sound.params, sound.options, sound.unshared)


def written(mutate: Mutation, mode: str, folder: Path, kind: str = ".pte") -> Path:
    """Write a copy of a sound subject, broken by `mutate`, into `folder`, and return its path."""
    is_folder = kind in FOLDER
    export = (FolderExport if is_folder else Export)(sound(mode, kind).artifact.path)
    mutate(export)
    return export.save(folder / ("mutant" if is_folder else f"mutant{kind}"))


def broken(mutate: Mutation, mode: str, folder: Path, kind: str = ".pte") -> Subject:
    """Return a copy of a sound subject, broken by `mutate` and written into `folder`."""
    return opened(written(mutate, mode, folder, kind), sound(mode, kind))


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


def complaints(
    subject: Subject | Callable[[], Subject], checks: Collection[str], causes: bool = False
) -> Complaints:
    """Return the failures of the checks that do not pass, by name, or of the `causes` alone.

    A check that is skipped does not pass, unless it is asked for `causes`.
    """
    order = [*artifact_checks(), *value_checks()]
    cases: Iterable[Case] = (judged(subject, name) for name in sorted(checks, key=order.index))
    if causes:
        return said(case for case in causes_only(cases) if case.outcome != "skip")
    return said(cases)


def said(cases: Iterable[Case]) -> Complaints:
    """Return what the cases that do not pass say, by check."""
    return {
        case.check: (*(text for one in case.findings for text in one.sentences), case.reason)
        for case in cases
        if case.outcome != "pass"
    }


def judge_export(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge an export whose parts a mutation changes."""
    subject = functools.cache(lambda: broken(*_made(mutant)))
    return complaints(subject, checks)


def judge_bytes(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge such an export by all checks of bytes, too; most of them must apply."""
    subject = broken(*_made(mutant))
    applicable = [n for n in OF_BYTES if not artifact_checks()[n].inapplicable(subject)]
    assert len(applicable) >= len(OF_BYTES) - len(_OF_PTES), applicable
    return complaints(subject, {*checks, *OF_BYTES}, causes=True)


def judge_subject(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge what a mutation makes of a `Mutant`: a subject with another file beside it."""
    subject = mutant.mutate(mutant) if mutant.mutate else sound(mutant.mode, mutant.kind)
    assert isinstance(subject, Subject)
    return complaints(subject, checks)


def _made(mutant: Mutant) -> tuple[Mutation, str, Path, str]:
    return mutant.mutate or touch_everything, mutant.mode, mutant.folder, mutant.kind
