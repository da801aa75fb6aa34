"""Compares two functions: their operations and their weights.

`align` finds the operations that have a counterpart. Their inputs and weights are compared one by
one, which finds two weights that changed places. The weights of all other operations are matched by
content first, then by name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import TYPE_CHECKING

from harness.artifact.package import Package
from harness.diff.difference import Difference, WeightSource, changed
from harness.diff.steps import RETURN, Step, by_data_flow, steps, type_text

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Value

COMMUTATIVE = frozenset(
    ("add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or")
)
CONSTEXPR = "constexpr_"  # the start of the types of operations that make weights, at load
_MAX_PAIRS = 50_000_000  # of operations aligned exactly; beyond, difflib's heuristic applies


@dataclass(frozen=True)
class Alignment:
    """The steps of two functions: the pairs that correspond, and the rest of each.

    `replaced` are the pairs of the rest at the same place: as many of one function as of the other
    between two pairs that correspond.
    """

    matched: tuple[tuple[Step, Step], ...]
    only_a: tuple[Step, ...]
    only_b: tuple[Step, ...]
    replaced: tuple[tuple[Step, Step], ...]

    @cached_property
    def names(self) -> dict[str, str]:
        """The values of one function, and those of the other in their place."""
        pairs = (*self.matched, *self.replaced)
        return {o: p for x, y in pairs for o, p in zip(x.outputs, y.outputs, strict=False)}

    @cached_property
    def rewired(self) -> list[tuple[Step, Step]]:
        """The pairs that take other values.

        This ignores values made by operations without a counterpart, which are reported themselves.
        An input of one function corresponds to the input of the same name of the other.
        """
        alone_in_a = {name for step in self.only_a for name in step.outputs}
        alone_in_b = {name for step in self.only_b for name in step.outputs}
        names, made_in_b = self.names, set(self.names.values())

        def differ(ours: str, theirs: str) -> bool:
            if ours in alone_in_a or theirs in alone_in_b:
                return False
            return (ours in names, names.get(ours, ours)) != (theirs in made_in_b, theirs)

        def is_rewired(x: Step, y: Step) -> bool:
            orders = (y.inputs, y.inputs[::-1]) if x.type in COMMUTATIVE else (y.inputs,)
            return all(any(map(differ, x.inputs, order)) for order in orders)

        return [
            (x, y)
            for x, y in (*self.matched, *self.replaced)
            if x.type == y.type and len(x.inputs) == len(y.inputs) and is_rewired(x, y)
        ]

    @property
    def distance(self) -> int:
        """The number of operations that are not the same."""
        alone = len(self.only_a) + len(self.only_b)
        return alone + len(self.replaced) + len(self.rewired)


def align(a: Sequence[Step], b: Sequence[Step]) -> Alignment:
    """Match the steps of two functions, as emitted or by data flow, whichever fits better."""
    emitted = _align(a, b)
    if not emitted.distance:
        return emitted
    return min(emitted, _align(by_data_flow(a), by_data_flow(b)), key=lambda x: x.distance)


def _align(a: Sequence[Step], b: Sequence[Step]) -> Alignment:
    """Match steps with equal keys in order, the longest runs first."""
    matched: list[tuple[Step, Step]] = []
    only_a: list[Step] = []
    only_b: list[Step] = []
    replaced: list[tuple[Step, Step]] = []
    i = j = 0
    for left, right, size in _runs([s.key for s in a], [s.key for s in b]):
        if left - i == right - j:
            replaced += zip(a[i:left], b[j:right], strict=True)
        else:
            only_a += a[i:left]
            only_b += b[j:right]
        i, j = left + size, right + size
        matched += zip(a[left:i], b[right:j], strict=True)
    return Alignment(tuple(matched), tuple(only_a), tuple(only_b), tuple(replaced))


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
    for x, y in alignment.replaced:
        yield _replaced(where, x, y)
    only_a, only_b = alignment.only_a, alignment.only_b
    if only_a or only_b:
        first, other = (f"{x[0].number}: {x[0].text}" if x else None for x in (only_a, only_b))
        yield Difference(where, "operation", "first without a counterpart", first, other)
        number = "number without a counterpart"
        yield Difference(where, "operation", number, len(only_a), len(only_b))
    if alignment.rewired:
        ours, theirs = alignment.rewired[0]
        more = len(alignment.rewired) - 1
        what = f"{ours.place} = {ours.type}, inputs" + (f" (and {more} more)" if more else "")
        yield Difference(where, "wiring", what, ", ".join(ours.inputs), ", ".join(theirs.inputs))
    renamed = [(o, p) for o, p in alignment.names.items() if o != p]
    if renamed:
        yield Difference(where, "names", f"names of {len(renamed)} values, first", *renamed[0])


def _replaced(where: str, a: Step, b: Step) -> Difference:
    """Return how an operation differs from the one in its place: the parameters, or all of it."""
    what = a.place
    named = [{p.name or "blocks": p.text for p in step.parameters} for step in (a, b)]
    for parts, step in zip(named, (a, b), strict=True):
        if step.types:
            parts["result"] = ", ".join(step.types)
    differing = [*changed(where, "operation", *named)]
    if a.type != b.type or len(differing) != 1:
        return Difference(where, "operation", what, a.signature, b.signature)
    (one,) = differing
    return replace(one, what=f"{what} = {a.type}, {one.what}")


@dataclass(frozen=True)
class Weight:
    """A weight of a function; `digest` is the SHA-256 of its bytes, `source` the place of it."""

    name: str
    type: str
    size: int
    digest: str
    source: WeightSource = field(compare=False)

    @property
    def content(self) -> tuple[str, str]:
        """Type and digest, which are equal for equal weights of any name."""
        return self.type, self.digest

    @property
    def text(self) -> str:
        """Type, size in bytes and the first digits of the digest."""
        return f"{self.type}, {self.size:,} bytes, #{self.digest[:8]}"


class Reader:
    """Reads the functions and weights of a package, each once."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self._digests: dict[tuple[str, int], str] = {}
        self._steps: dict[str, list[Step]] = {}

    def steps(self, function: str) -> list[Step]:
        """Return a function's steps; raises ArtifactError when it does not exist."""
        if function not in self._steps:
            block = self.package.operations(function)  # first: `functions` would add the name
            self._steps[function] = steps(self.package.functions[function], block)
        return self._steps[function]

    def weights(self, function: str, step: Step) -> list[Weight]:
        """Return the weights that an operation of a function takes.

        Raises ArtifactError when one is not in the package.
        """
        made = step.outputs[0] if step.type.startswith(CONSTEXPR) else None
        return [
            self._weight(name, value, WeightSource(self.package, function, made, value))
            for name, value in step.weights
        ]

    def _weight(self, name: str, value: Value, source: WeightSource) -> Weight:
        key = (value.blobFileValue.fileName, value.blobFileValue.offset)
        blob = self.package.blob(*key)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(blob.data).hexdigest()
        return Weight(name, type_text(value.type), len(blob.data), self._digests[key], source)


Taken = Callable[[Step], list[Weight]]
"""Returns the weights that an operation takes."""


def diff_weights(where: str, alignment: Alignment, a: Taken, b: Taken) -> Iterator[Difference]:
    """Yield a difference for each weight that the other function lacks, or has elsewhere."""
    pairs: dict[tuple[Weight, Weight], None] = {}
    only_a, only_b = list(alignment.only_a), list(alignment.only_b)
    for ours, theirs in (*alignment.matched, *alignment.replaced):
        if len(ours.weights) == len(theirs.weights):
            pairs |= dict.fromkeys(zip(a(ours), b(theirs), strict=True))
        else:
            only_a.append(ours)
            only_b.append(theirs)
    for old, new in pairs:
        if old.content != new.content:
            yield _differing(where, old, new)
    names = [(old.name, new.name) for old, new in pairs if old.name != new.name]
    if names:
        yield Difference(where, "names", f"names of {len(names)} weights, first", *names[0])
    others_a = dict.fromkeys(weight for step in only_a for weight in a(step))
    others_b = dict.fromkeys(weight for step in only_b for weight in b(step))
    yield from _diff_others(where, list(others_a), list(others_b))


def _differing(where: str, a: Weight | None, b: Weight | None) -> Difference:
    known = [weight for weight in (a, b) if weight is not None]
    ours, theirs = (weight.text if weight else None for weight in (a, b))
    sources = tuple(weight.source if weight else None for weight in (a, b))
    return Difference(where, "weight", known[0].name, ours, theirs, sources=sources)


def _diff_others(where: str, a: list[Weight], b: list[Weight]) -> Iterator[Difference]:
    """Yield the differences between weights of operations without counterparts."""
    for same in (lambda w: w.content, lambda w: w.name):
        a, b, pairs = _paired(a, b, same)
        for old, new in pairs:
            if old.content != new.content:
                yield _differing(where, old, new)
    for weight in a:
        yield _differing(where, weight, None)
    for weight in b:
        yield _differing(where, None, weight)


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
