"""A difference between two artifacts, and the comparisons that find one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Value

    from harness.artifact.package import Package


@dataclass(frozen=True)
class WeightSource:
    """Where a weight is: its `Value`, and the result of the constexpr operation that takes it."""

    package: Package
    function: str
    result: str | None
    value: Value

    @property
    def place(self) -> tuple[object, ...]:
        """What is equal for the same weight: its package, and its place in the weight file."""
        return self.package, self.value.blobFileValue.fileName, self.value.blobFileValue.offset


@dataclass(frozen=True)
class Difference:
    """A difference: where it is, and the JSON values of both sides, None where one has nothing.

    `is_incidental` says that it belongs to the one export, not to the model: identifiers drawn at
    random, the date, debug data. `is_name` says that it is about names or an order, and the method
    computes the same from the same inputs. `sources` are those of a weight.
    """

    where: str
    kind: str
    what: str
    a: Any
    b: Any
    is_incidental: bool = False
    is_name: bool = False
    sources: tuple[WeightSource | None, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the difference as a JSON object."""
        return {name: getattr(self, name) for name in ("where", "kind", "what", "a", "b")}


_RANDOM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32,}")


def without_random(text: str) -> str:
    """Return a text with a `*` for each UUID and each digest in hex in it."""
    return _RANDOM.sub("*", text)


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
