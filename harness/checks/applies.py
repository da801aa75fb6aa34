"""Why a check does not apply to an artifact: what several modules of checks need."""

from __future__ import annotations

from harness.artifact import Artifact
from harness.artifact.delegate import BACKEND
from harness.subject import Subject


def language_model(subject: Subject) -> str | None:
    """Return why an artifact that is no language model of the static runner is skipped, or None.

    Raises HarnessError when it was exported as one: its description is lost.
    """
    if subject.is_language_model or subject.options:
        _ = subject.mode
        return None
    return (
        "judges language models that describe themselves for ExecuTorch's static runner, by "
        "constants such as 'forward_input_len'"
    )


def program(subject: Subject) -> str | None:
    """Return why a bare package is skipped, or None."""
    return None if subject.artifact.pte else "a bare package has no program and no metadata.json"


def executable(subject: Subject) -> str | None:
    """Return why an artifact that only in part is Core ML's cannot be executed, or None."""
    found = other_backends(subject.artifact)
    return f"calls delegates of {', '.join(found)}, which are not executed" if found else None


def other_backends(artifact: Artifact) -> list[str]:
    """Return the names of the backends beside Core ML that a program delegates to."""
    methods = artifact.pte.methods.values() if artifact.pte else ()
    return sorted({d.backend for m in methods for d in m.delegates} - {BACKEND})
