"""Operations of two functions side by side: which have a counterpart, and what those differ in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from harness.diff.difference import Difference, changed
from harness.diff.steps import RETURN, Step

_MOST_PAIRS = 50_000_000  # of operations to be aligned exactly; beyond, difflib's heuristic


@dataclass(frozen=True)
class Alignment:
    """Two functions' steps: those that correspond, and those that do not.

    `first` shows the first place where they part; None where one function has nothing there.
    """

    matched: tuple[tuple[Step, Step], ...]
    only_a: tuple[Step, ...]
    only_b: tuple[Step, ...]
    first: tuple[str | None, str | None]


def align(a: Sequence[Step], b: Sequence[Step]) -> Alignment:
    """Match steps with equal keys, in order, the longest runs first."""
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
    """Return runs of equal items: index in `a`, index in `b`, length; the last ends both."""
    shorter = min(len(a), len(b))
    start = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    rest = shorter - start
    end = next((n for n in range(rest) if a[-1 - n] != b[-1 - n]), rest)
    left, right = a[start : len(a) - end], b[start : len(b) - end]
    heuristic = len(left) * len(right) > _MOST_PAIRS
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
    """Yield the first operation that takes other values than its counterpart does.

    A value whose maker has no counterpart is told of there. An input of the function, which nothing
    makes, corresponds to the one of the same name.
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
        what = f"what {len(wrong)} operations take, first {', '.join(ours.outputs) or RETURN}"
        yield Difference(where, "wiring", what, ", ".join(ours.inputs), ", ".join(theirs.inputs))
