"""One thing that two artifacts say differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """What differs and where; `a` and `b` are JSON values, None for what is not there."""

    where: str
    kind: str
    what: str
    a: Any
    b: Any


def changed(
    where: str, kind: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[Difference]:
    """Yield a difference for each key whose values are not equal, in the order of `a`."""
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            yield Difference(where, kind, key, a.get(key), b.get(key))


def reordered(where: str, what: str, a: Sequence[str], b: Sequence[str]) -> Iterator[Difference]:
    """Yield a difference when the same names stand in another order."""
    if sorted(a) == sorted(b) and list(a) != list(b):
        yield Difference(where, "order", what, list(a), list(b))
