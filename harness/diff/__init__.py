"""Compares two artifacts: programs, operations, weights, metadata and sizes. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from harness.artifact import Artifact
from harness.artifact.facts import storage
from harness.artifact.files import FolderFiles, is_folder, map_file
from harness.artifact.pte_reader import program_tables
from harness.diff.difference import Difference, changed, same_files, without_random
from harness.diff.expressions import function_digests, method_digests
from harness.diff.functions import Reader
from harness.diff.programs import diff_packages, diff_programs
from harness.errors import HarnessError

__all__ = ["Difference", "check_readable", "diff_artifacts"]

_IDENTIFIERS = ("identifier", "key")
# Ends of the names of metadata and files: the date, and what maps operations to the exporter's.
_OF_ONE_EXPORT = ("conversion_date", "debug_info.json", "debug_handle_mapping.json")

_Files = Mapping[str, memoryview]


def diff_artifacts(a: Artifact, b: Artifact) -> list[Difference]:
    """Return the differences, from the whole to the parts; none when all bytes are equal.

    Those between two exports of one model are marked `is_incidental`.

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
    found = [*changed("", "size", *({"bytes": sum(map(len, x.values()))} for x in files))]
    found += changed("", "weight bytes", *map(_storage, (a, b)))
    if a.kind == b.kind:
        found += changed("", "file", *(dict.fromkeys(each, "there") for each in files))
    if a.package is not None and b.package is not None:
        found += diff_packages(a.package, b.package)
    else:
        found += diff_programs(a, b)
    found = [replace(one, is_incidental=True) if _is_incidental(one) else one for one in found]
    if all(one.is_incidental for one in found):
        found += _diff_tables(*files)
    if found:
        return found
    # A manifest's identifiers, or the order of a message's entries.
    sizes = [sum(map(len, each.values())) for each in files]
    return [Difference("", "bytes", "identifiers or order", sizes[0], sizes[1], is_incidental=True)]


def _storage(artifact: Artifact) -> dict[str, int]:
    """Return in bytes what sharing saves and could save; packages show what they store."""
    found = storage(artifact)
    return {
        "saved by sharing": found.saved,
        "stored again": found.repeated,
        "in programs": found.in_programs,
        "of uncalled functions": found.uncalled,
        "without reference": found.unreferenced,
    }


def check_readable(artifact: Artifact) -> None:
    """Read every part that is compared; raises ArtifactError for a damaged one."""
    _ = artifact.constants
    readers = {package: Reader(package) for package in artifact.packages}
    for package, reader in readers.items():
        for function in package.functions:
            function_digests(reader, function)
    for method in artifact.methods if artifact.pte else ():
        method_digests(artifact, method, readers)


def _is_incidental(found: Difference) -> bool:
    """Return whether two exports of one model may differ so."""
    if found.what.endswith(_OF_ONE_EXPORT):
        return True
    a, b = found.a, found.b
    named = found.what in _IDENTIFIERS and isinstance(a, str) and isinstance(b, str)
    return named and without_random(a) == without_random(b) != a


def _diff_tables(a: _Files, b: _Files) -> Iterator[Difference]:
    """Yield a difference when a .pte's tables differ where nothing is compared."""
    tables = [program_tables(files[""]) if "" in files else b"" for files in (a, b)]
    texts = [without_random(bytes(table).decode("latin-1")) for table in tables]
    if texts[0] != texts[1]:
        what = "outside the compared parts"
        yield Difference("", "bytes", what, len(texts[0]), len(texts[1]))


def _files(artifact: Artifact) -> _Files:
    """Return an artifact's files by name; a single file has the name ""."""
    if is_folder(artifact.path):
        return FolderFiles(artifact.path)
    return {"": map_file(artifact.path)}
