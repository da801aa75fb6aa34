"""Weight sharing of a multifunction artifact: what could be stored once must be.

Sharing is lost without an error when partitions do not line up (ExecuTorch 18531): only bytes tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.artifact import Package, open_artifact
from harness.artifact.facts import duplicate_bytes, sharing
from harness.results import Figure, Finding
from harness.subject import Subject

_SLACK = 0.001  # names and headers may differ a little between the two exports


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
    """The artifact against the same export with sharing off: bytes, and what the weights allow."""
    assert subject.unshared is not None
    unshared = open_artifact(subject.unshared)
    packages = [bundle.package for bundle in subject.artifact.bundles]
    together = sum(_model_bytes(package) for package in packages)
    apart = sum(_model_bytes(bundle.package) for bundle in unshared.bundles)
    programs = sum(len(package.files[package.spec_path]) for package in packages)
    weights, functions = together - programs, len(subject.artifact.methods)
    assert subject.artifact.pte is not None
    assert unshared.pte is not None
    # Apart, each function has its own program and a copy of the weights.
    possible = together / (functions * weights + programs)
    yield Finding(
        "sharing-size",
        "all packages",
        ok=len(unshared.bundles) == functions * len(packages),
        message=f"{len(unshared.bundles)} packages without sharing, {len(packages)} with it",
        comparisons=len(unshared.bundles),
        figures={
            "size over parts": Figure(together / apart, "", bound=round(possible + _SLACK, 4))
        },
        facts={
            "multifunction bytes": subject.artifact.pte.size,
            "unshared bytes": unshared.pte.size,
        },
    )


def _model_bytes(package: Package) -> int:
    """Return the bytes of the specification and the weights: no manifest, no debugging files."""
    return sum(len(data) for name, data in package.files.items() if name.startswith("Data/"))
