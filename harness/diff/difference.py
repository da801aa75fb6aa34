"""A difference between two artifacts, and the comparisons that find one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """A difference: where it is, and the JSON values of both sides, None where one has nothing."""

    where: str
    kind: str
    what: str
    a: Any
    b: Any


def changed(
    where: str, kind: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[Difference]:
    """Yield a difference for each key with unequal values, in the order of `a`."""
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            yield Difference(where, kind, key, a.get(key), b.get(key))


def reordered(where: str, what: str, a: Sequence[str], b: Sequence[str]) -> Iterator[Difference]:
    """Yield a difference when the same names have another order."""
    if sorted(a) == sorted(b) and list(a) != list(b):
        yield Difference(where, "order", what, list(a), list(b))


def same_files(a: Mapping[str, memoryview], b: Mapping[str, memoryview]) -> bool:
    """Return whether both have the same files, byte by byte."""
    return set(a) == set(b) and all(same_bytes(a[name], b[name]) for name in a)


def same_bytes(a: memoryview, b: memoryview) -> bool:
    """Return whether two parts of files are equal; compares a few MB at a time."""
    chunk = 1 << 22
    return len(a) == len(b) and all(
        bytes(a[start : start + chunk]) == bytes(b[start : start + chunk])
        for start in range(0, len(a), chunk)
    )
