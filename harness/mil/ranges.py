"""How near the values of each operation come to the ends of fp16, seen by carrying them wider.

Three limits: the largest value, 65504; the smallest normal number, 6.1e-5, below which digits are
lost one by one; and 255.9, the largest value whose square is in range. An RMSNorm that squares its
input in fp16 overflows beyond that: `rsqrt(inf)` is 0, the block is zeroed, and every value that
leaves it is finite (ExecuTorch 19523). Only the range shows it.

A margin is a factor: at 12 the values could grow twelvefold. Infinities are left out: a mask is
made of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from harness.mil.plan import Step
from harness.mil.types import TensorType

_HALF = torch.finfo(torch.float16)
LARGEST: float = _HALF.max
SMALLEST: float = _HALF.tiny
_SQUARES = frozenset(("square", "reduce_sum_square"))


@dataclass
class Range:
    """What an operation's FLOAT16 results were, over all calls: the largest magnitude, the
    smallest that is not zero, how many are not zero, and how many of them are subnormal in fp16.

    `squares` says that the results are squares, or sums of them: those of a `mul` of a value
    with itself, or of an operation of that name.
    """

    where: str
    operation: str
    squares: bool
    peak: float = 0.0
    least: float = math.inf
    nonzero: int = 0
    subnormal: int = 0

    @property
    def overflow_margin(self) -> float:
        """How many times larger the results could be."""
        return LARGEST / self.peak if self.peak else math.inf

    @property
    def square_margin(self) -> float | None:
        """How many times larger what is squared could be: 255.9 over its largest value; None where
        nothing is squared."""
        return math.sqrt(self.overflow_margin) if self.squares else None

    @property
    def margin(self) -> float:
        """The smaller of the two margins; below 1, something overflows."""
        square = self.square_margin
        return self.overflow_margin if square is None else min(square, self.overflow_margin)

    @property
    def subnormal_fraction(self) -> float:
        """Of the values that are not zero, the part that is smaller than 6.1e-5."""
        return self.subnormal / self.nonzero if self.nonzero else 0.0

    def add(self, tensor: torch.Tensor) -> None:
        """Take in the values of one result."""
        size = tensor.abs()
        size = size[torch.isfinite(size) & (size > 0)]
        if not size.numel():
            return
        self.peak = max(self.peak, float(size.max()))
        self.least = min(self.least, float(size.min()))
        self.nonzero += size.numel()
        self.subnormal += int((size < SMALLEST).sum())


@dataclass
class RangeMonitor:
    """An observer for `harness.mil.observed`: `ranges` grows with every operation that runs."""

    ranges: dict[str, Range] = field(default_factory=dict)

    def __call__(self, step: Step, results: tuple[torch.Tensor, ...]) -> None:
        """Take in an operation's FLOAT16 results."""
        for result, declared in zip(results, step.types, strict=True):
            if not isinstance(declared, TensorType) or declared.dtype.name != "FLOAT16":
                continue
            if step.where not in self.ranges:
                self.ranges[step.where] = Range(step.where, step.operation, _squares(step))
            self.ranges[step.where].add(result)

    def worst(self) -> list[Range]:
        """The ranges, the one nearest to overflow first."""
        return sorted(self.ranges.values(), key=lambda row: row.margin)


def _squares(step: Step) -> bool:
    same = len(step.reads) == 2 and step.reads[0] == step.reads[1]
    return step.operation in _SQUARES or (step.operation == "mul" and same)
