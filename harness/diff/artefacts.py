"""Two artefacts of one kind side by side."""

from __future__ import annotations

from collections.abc import Iterator

from harness.artifact.artifact import Artifact
from harness.artifact.mapped import map_file
from harness.artifact.package import Package
from harness.diff.difference import Difference, changed
from harness.diff.packages import Pair, same_bytes
from harness.diff.programs import diff_programs
from harness.errors import HarnessError


def diff_artifacts(a: Artifact, b: Artifact) -> list[Difference]:
    """Return what differs, from the whole to the parts; nothing when every byte is equal.

    Raises HarnessError when one is a .pte and the other a package, ArtifactError when a part that
    has to be read is damaged.
    """
    if a.package is not None and b.package is not None:
        return _diff_packages(a.package, b.package)
    if a.pte is None or b.pte is None:
        package, program = (x.path for x in ((a, b) if a.pte is None else (b, a)))
        raise HarnessError(
            f"{package} is a package and {program} a program: take the packages out of the program "
            "with `harness extract`, and compare one of them"
        )
    data = map_file(a.path), map_file(b.path)
    if same_bytes(*data):
        return []
    found = [*_size(len(data[0]), len(data[1])), *diff_programs(a, b)]
    return found or [Difference("", "bytes", "what no part shows", *map(len, data))]


def _size(a: int, b: int) -> Iterator[Difference]:
    yield from changed("", "size", {"bytes": a}, {"bytes": b})


def _diff_packages(a: Package, b: Package) -> list[Difference]:
    found = list(_size(a.size, b.size))
    for name in sorted(set(a.files) | set(b.files)):
        sizes = [len(p.files[name]) if name in p.files else None for p in (a, b)]
        if None in sizes or not same_bytes(a.files[name], b.files[name]):
            found.append(Difference("", "file", name, *sizes))
    pair = Pair(a, b)
    found += pair.package("")
    for name in a.functions:
        if name in b.functions:
            found += pair.function(f"function '{name}'", name, name)
    return found
