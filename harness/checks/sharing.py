"""Weight sharing of a multifunction artefact: what could be stored once must be.

Sharing is lost without an error when partitions do not line up (ExecuTorch 18531): only bytes tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.artifact import open_artifact
from harness.artifact.facts import duplicate_bytes, sharing
from harness.checks.finding import Finding
from harness.checks.subject import Subject
from harness.report.figures import Figure


def check_sharing(subject: Subject) -> Iterator[Finding]:
    """No function has a weight of its own, and no content is stored twice."""
    for index, bundle in enumerate(subject.artifact.bundles):
        shares, twice = sharing(bundle.package), duplicate_bytes(bundle.package)
        alone = shares.stored - shares.shared
        yield Finding(
            "weight-sharing",
            f"package {index}",
            ok=alone == 0 and twice == 0 and len(bundle.package.functions) > 1,
            message=f"{len(bundle.package.functions)} functions; {alone} bytes of weights are not "
            f"shared by all of them, {twice} bytes stand in the package twice",
            comparisons=len(bundle.package.functions),
            facts={"stored weight bytes": shares.stored, "used weight bytes": shares.used},
        )


def check_sharing_size(subject: Subject) -> Iterator[Finding]:
    """The artefact against the same export with sharing off: bytes, and what the weights allow."""
    assert subject.unshared is not None
    unshared = open_artifact(subject.unshared)
    together = sum(bundle.package.size for bundle in subject.artifact.bundles)
    apart = sum(bundle.package.size for bundle in unshared.bundles)
    weights = sum(sharing(bundle.package).stored for bundle in subject.artifact.bundles)
    programs = together - weights
    assert subject.artifact.pte is not None
    assert unshared.pte is not None
    # Of the parts, each function has its own program and a copy of the weights; 2 % is for headers.
    possible = (weights + programs) / (2 * weights + programs)
    yield Finding(
        "sharing-size",
        "all packages",
        comparisons=len(unshared.bundles),
        figures={"size over parts": Figure(together / apart, "", bound=round(possible * 1.02, 4))},
        facts={
            "multifunction bytes": subject.artifact.pte.size,
            "unshared bytes": unshared.pte.size,
        },
    )
