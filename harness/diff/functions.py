"""Compares two functions: their operations and their weights.

`align` finds the operations that have a counterpart. Their inputs and weights are compared one by
one, which finds two weights that changed places. The weights of all other operations are matched by
content first, then by name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from harness.artifact.package import Package
from harness.diff.difference import Difference, changed
from harness.diff.steps import RETURN, Step, type_text

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Value

_MAX_PAIRS = 50_000_000  # of operations aligned exactly; beyond, difflib's heuristic applies


@dataclass(frozen=True)
class Alignment:
    """The steps of two functions: the pairs that correspond, and the rest of each.

    `first` shows the first steps without a counterpart; None where a function has no such step.
    """

    matched: tuple[tuple[Step, Step], ...]
    only_a: tuple[Step, ...]
    only_b: tuple[Step, ...]
    first: tuple[str | None, str | None]


def align(a: Sequence[Step], b: Sequence[Step]) -> Alignment:
    """Match steps with equal keys in order, the longest runs first."""
    matched: list[tuple[Step, Step]] = []
    only_a: list[Step] = []
    only_b: list[Step] = []
    first: tuple[str | None, str | None] = (None, None)
    i = j = 0
    for left, right, size in _runs([s.key for s in a], [s.key for s in b]):
        if first == (None, None):
            first = (_shown(a, i, left), _shown(b, j, right))
        only_a += a[i:left]
        only_b += b[j:right]
        i, j = left + size, right + size
        matched += zip(a[left:i], b[right:j], strict=True)
    return Alignment(tuple(matched), tuple(only_a), tuple(only_b), first)


def _shown(steps: Sequence[Step], start: int, stop: int) -> str | None:
    return f"{start}: {steps[start].text}" if start < stop else None


def _runs(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int, int]]:
    """Return runs of equal items (index in `a`, index in `b`, length); the last ends both lists."""
    shorter = min(len(a), len(b))
    start = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    rest = shorter - start
    end = next((n for n in range(rest) if a[-1 - n] != b[-1 - n]), rest)
    left, right = a[start : len(a) - end], b[start : len(b) - end]
    heuristic = len(left) * len(right) > _MAX_PAIRS
    between = SequenceMatcher(None, left, right, heuristic).get_matching_blocks()
    return [
        (0, 0, start),
        *((start + i, start + j, size) for i, j, size in between),
        (len(a) - end, len(b) - end, end),
    ]


def diff_operations(
    where: str, a: Sequence[Step], b: Sequence[Step], alignment: Alignment
) -> Iterator[Difference]:
    """Yield the differences of two functions' operations."""
    counts = [Counter(s.type for s in function if s.type != RETURN) for function in (a, b)]
    yield from changed(where, "operations", *map(dict, counts))
    alone = len(alignment.only_a), len(alignment.only_b)
    if any(alone):
        yield Difference(where, "operation", "first without a counterpart", *alignment.first)
        yield Difference(where, "operation", "number without a counterpart", *alone)
    names = {o: p for x, y in alignment.matched for o, p in zip(x.outputs, y.outputs, strict=True)}
    yield from _rewired(where, alignment, names)
    renamed = [(o, p) for o, p in names.items() if o != p]
    if renamed:
        yield Difference(where, "names", f"names of {len(renamed)} values, first", *renamed[0])


def _rewired(where: str, alignment: Alignment, names: dict[str, str]) -> Iterator[Difference]:
    """Yield the first operation whose inputs are not those of its counterpart.

    This ignores values made by operations without a counterpart, which are reported themselves. An
    input of one function corresponds to the input of the same name of the other.
    """
    alone_in_a = {name for step in alignment.only_a for name in step.outputs}
    alone_in_b = {name for step in alignment.only_b for name in step.outputs}
    made_in_b = set(names.values())

    def differ(ours: str, theirs: str) -> bool:
        if ours in alone_in_a or theirs in alone_in_b:
            return False
        return (ours in names, names.get(ours, ours)) != (theirs in made_in_b, theirs)

    wrong = [
        (x, y)
        for x, y in alignment.matched
        if any(differ(p, q) for p, q in zip(x.inputs, y.inputs, strict=True))
    ]
    if wrong:
        ours, theirs = wrong[0]
        what = f"inputs of {len(wrong)} operations, first {', '.join(ours.outputs) or RETURN}"
        yield Difference(where, "wiring", what, ", ".join(ours.inputs), ", ".join(theirs.inputs))


@dataclass(frozen=True)
class Weight:
    """A weight of a function; `digest` is the SHA-256 of its bytes."""

    name: str
    type: str
    size: int
    digest: str

    @property
    def content(self) -> tuple[str, str]:
        """Type and digest, which are equal for equal weights of any name."""
        return self.type, self.digest

    @property
    def text(self) -> str:
        """Type, size in bytes and the first digits of the digest."""
        return f"{self.type}, {self.size:,} bytes, #{self.digest[:8]}"


class Weights:
    """The weights of a package; each is read once for all functions that share it."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._digests: dict[tuple[str, int], str] = {}

    def __call__(self, name: str, value: Value) -> Weight:
        """Return the weight to which a `Value` refers; raises ArtifactError without one."""
        key = (value.blobFileValue.fileName, value.blobFileValue.offset)
        blob = self._package.blob(*key)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(blob.data).hexdigest()
        return Weight(name, type_text(value.type), len(blob.data), self._digests[key])


def diff_weights(where: str, alignment: Alignment, a: Weights, b: Weights) -> Iterator[Difference]:
    """Yield a difference for each weight that the other function lacks, or has elsewhere."""
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
    """Yield the differences between weights of operations without counterparts."""
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
    a: Iterable[Weight], b: Iterable[Weight], key: Callable[[Weight], Hashable]
) -> tuple[list[Weight], list[Weight], list[tuple[Weight, Weight]]]:
    """Pair weights with equal keys; return the rest of `a`, the rest of `b`, and the pairs."""
    waiting: dict[Hashable, list[Weight]] = {}
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
