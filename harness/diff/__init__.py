"""Compares two artifacts: programs, operations, weights, metadata and sizes. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.artifact import Artifact
from harness.artifact.mapped import FolderFiles, is_folder, map_file
from harness.artifact.package import Package
from harness.diff.difference import Difference, changed, same_bytes, same_files
from harness.diff.packages import Pair
from harness.diff.programs import diff_programs
from harness.errors import HarnessError

__all__ = ["Difference", "diff_artifacts"]

_Files = Mapping[str, memoryview]


def diff_artifacts(a: Artifact, b: Artifact) -> list[Difference]:
    """Return the differences, from the whole to the parts; none when all bytes are equal.

    Raises HarnessError when one artifact is a program and the other a package, and ArtifactError
    when a part that is compared is damaged.
    """
    if (a.package is None) != (b.package is None):
        package, program = (x.path for x in ((a, b) if a.package is not None else (b, a)))
        raise HarnessError(
            f"{package} is a package and {program} a program: take the packages out of the program "
            "with `harness extract`, and compare one of them"
        )
    files = _files(a), _files(b)
    if same_files(*files):
        return []
    found = [*_diff_files(*files)]
    if a.package is not None and b.package is not None:
        found += _diff_packages(a.package, b.package)
    else:
        found += diff_programs(a, b)
    sizes = [sum(map(len, each.values())) for each in files]
    return found or [Difference("", "bytes", "outside the compared parts", *sizes)]


def _files(artifact: Artifact) -> _Files:
    """Return an artifact's files by name; a single file has the name ""."""
    if is_folder(artifact.path):
        return FolderFiles(artifact.path)
    return {"": map_file(artifact.path)}


def _diff_files(a: _Files, b: _Files) -> Iterator[Difference]:
    yield from changed("", "size", *({"bytes": sum(map(len, x.values()))} for x in (a, b)))
    if "" in (*a, *b):  # a .pte is a single file; its parts show more
        return
    for name in sorted({*a, *b}):
        sizes = [len(files[name]) if name in files else None for files in (a, b)]
        if None in sizes or not same_bytes(a[name], b[name]):
            yield Difference("", "file", name, *sizes)


def _diff_packages(a: Package, b: Package) -> Iterator[Difference]:
    pair = Pair(a, b)
    yield from pair.package("")
    for name in a.functions:
        if name in b.functions:
            yield from pair.function(f"function '{name}'", name, name)
