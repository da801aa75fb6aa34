"""Weights of two functions: kept, changed, added, removed.

Of operations that correspond, weights are compared one by one, so that two that changed places are
found. Of the others, a weight is told by its content first, then by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.artifact.package import Package
from harness.diff.difference import Difference
from harness.diff.operations import Alignment
from harness.diff.values import type_text


@dataclass(frozen=True)
class Weight:
    """A weight as a function uses it; `digest` is of its bytes."""

    name: str
    type: str
    size: int
    digest: str

    @property
    def content(self) -> tuple[str, str]:
        """What makes two weights the same, whatever they are called."""
        return self.type, self.digest

    @property
    def text(self) -> str:
        """Type, size and the beginning of the digest."""
        return f"{self.type}, {self.size:,} bytes, #{self.digest[:8]}"


class Weights:
    """The weights of a package, each read once for all functions that share it."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._digests: dict[tuple[str, int], str] = {}

    def __call__(self, name: str, value: Any) -> Weight:
        """Return what a `Value` refers to; raises ArtifactError when it is not there."""
        key = (value.blobFileValue.fileName, value.blobFileValue.offset)
        blob = self._package.blob(*key)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(blob.data).hexdigest()
        return Weight(name, type_text(value.type), len(blob.data), self._digests[key])


def diff_weights(where: str, alignment: Alignment, a: Weights, b: Weights) -> Iterator[Difference]:
    """Yield a difference for each weight of one function that the other has not, or not there."""
    pairs = dict.fromkeys(
        (a(*x), b(*y))
        for ours, theirs in alignment.matched
        for x, y in zip(ours.weights, theirs.weights, strict=True)
    )
    for old, new in pairs:
        if old.content != new.content:
            yield Difference(where, "weight", old.name, old.text, new.text)
    names = [(old.name, new.name) for old, new in pairs if old.name != new.name]
    if names:
        yield Difference(where, "names", f"names of {len(names)} weights, first", *names[0])
    only_a = dict.fromkeys(a(*w) for step in alignment.only_a for w in step.weights)
    only_b = dict.fromkeys(b(*w) for step in alignment.only_b for w in step.weights)
    yield from _diff_others(where, list(only_a), list(only_b))


def _diff_others(where: str, a: list[Weight], b: list[Weight]) -> Iterator[Difference]:
    """Compare weights of operations without counterparts."""
    for same in (lambda w: w.content, lambda w: w.name):
        a, b, pairs = _paired(a, b, same)
        for old, new in pairs:
            if old.content != new.content:
                yield Difference(where, "weight", old.name, old.text, new.text)
    for weight in a:
        yield Difference(where, "weight", weight.name, weight.text, None)
    for weight in b:
        yield Difference(where, "weight", weight.name, None, weight.text)


def _paired(
    a: Iterable[Weight], b: Iterable[Weight], key: Callable[[Weight], Any]
) -> tuple[list[Weight], list[Weight], list[tuple[Weight, Weight]]]:
    """Pair weights with equal keys; return those left of `a`, of `b`, and the pairs."""
    waiting: dict[Any, list[Weight]] = {}
    for weight in b:
        waiting.setdefault(key(weight), []).append(weight)
    left, pairs = [], []
    for weight in a:
        found = waiting.get(key(weight))
        if found:
            pairs.append((weight, found.pop(0)))
        else:
            left.append(weight)
    return left, [weight for rest in waiting.values() for weight in rest], pairs
