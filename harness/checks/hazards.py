"""The check of hazards: what a converter may have made wrong, and what devices are known to do.

Each finding is a warning; `harness check --strict` makes it a failure. The lints are in
`harness.artifact.hazards` and need nothing but bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.artifact.hazards import hazards_of
from harness.artifact.hazards.interfaces import scalars_at_the_boundary
from harness.checks.containers import readable
from harness.checks.run import check
from harness.results import Finding
from harness.subject import Subject

_UNREAD_INPUT = "H10"  # of a delegate, `types` calls it a failure
_FUSED_ATTENTION = "H39"  # of a static language model, `program` calls it a failure


@check("hazards", needs=(readable,))
def check_hazards(subject: Subject) -> Iterator[Finding]:
    """Look for the hazards of each function; one finding for each place."""
    for number, package in enumerate(subject.artifact.packages):
        for name in sorted(package.functions):
            where = f"package {number}, function '{name}'"
            for code, found in hazards_of(package, name):
                if code == _UNREAD_INPUT and subject.artifact.pte is not None:
                    continue
                if code == _FUSED_ATTENTION and subject.is_language_model:
                    continue
                yield Finding(
                    "hazards",
                    f"{where}, {found.place}",
                    ok=False,
                    message=found.evidence,
                    code=code,
                    warning=True,
                )
            count = len(package.operations(name).operations)
            yield Finding("hazards", where, comparisons=count)
    for found in scalars_at_the_boundary(subject.artifact):
        yield Finding(
            "hazards", found.place, ok=False, message=found.evidence, code="H49", warning=True
        )
