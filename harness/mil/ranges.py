"""Measures how near the values of each operation come to the limits of fp16.

The values are carried in a wider dtype. fp16 has three limits: the largest value, 65504; the
smallest normal number, 6.1e-5, below which digits are lost one by one; and 255.9, the largest value
whose square is in range. An RMSNorm that squares a larger input in fp16 overflows: `rsqrt(inf)` is
0, the block is zeroed, and all of its outputs are finite (ExecuTorch 19523). Only the range shows
it.

A margin is a factor: with a margin of 12, the values may grow twelvefold. Infinities do not count,
because masks contain them.

The logarithm of a value below 3e-8, which fp16 rounds to 0, is another one there, and far smaller
(coremltools 2728): such results have `vanished`.

Quantized activations have limits of their own: a scale that was calibrated on too small values
clips the others to the ends of 8 bits (coremltools 2724).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from harness.mil.block import Step
from harness.mil.types import TensorType

_HALF = torch.finfo(torch.float16)
LARGEST: float = _HALF.max
SMALLEST: float = _HALF.tiny
_ENDS = {"INT8": (-128, 127), "UINT8": (0, 255)}
_LEAST_LOG = math.log(2.0**-25)  # half of the smallest subnormal number
_SQUARES = frozenset(("square", "reduce_sum_square"))


@dataclass
class Range:
    """The range of an operation's FLOAT16 results over all calls, or the clipping of a `quantize`.

    It has the largest magnitude, the smallest magnitude above zero, the number of nonzero values,
    and how many of these are subnormal in fp16. `squares` is true for an operation whose results
    are squares or sums of squares: one of that name, or a `mul` of a value by itself. `quantized`
    counts the results of a `quantize`, `clipped` those at an end of their dtype; `vanished` counts
    the results of a `log` whose operand fp16 rounds to 0.
    """

    where: str
    operation: str
    squares: bool
    peak: float = 0.0
    least: float = math.inf
    nonzero: int = 0
    subnormal: int = 0
    quantized: int = 0
    clipped: int = 0
    vanished: int = 0

    @property
    def overflow_margin(self) -> float:
        """The factor by which the results may grow."""
        return LARGEST / self.peak if self.peak else math.inf

    @property
    def square_margin(self) -> float | None:
        """The factor by which a squared value may grow: 255.9 over the largest one.

        None if the operation does not square.
        """
        return math.sqrt(self.overflow_margin) if self.squares else None

    @property
    def margin(self) -> float:
        """The smaller of the two margins; below 1, something overflows."""
        square = self.square_margin
        return self.overflow_margin if square is None else min(square, self.overflow_margin)

    @property
    def subnormal_fraction(self) -> float:
        """The fraction of nonzero values that are smaller than 6.1e-5."""
        return self.subnormal / self.nonzero if self.nonzero else 0.0

    @property
    def clipped_fraction(self) -> float | None:
        """The fraction of quantized values at an end of their dtype; None for other operations."""
        return self.clipped / self.quantized if self.quantized else None

    def add_quantized(self, tensor: torch.Tensor, low: int, high: int) -> None:
        """Add the integers of one `quantize`, whose dtype goes from `low` to `high`."""
        self.quantized += tensor.numel()
        self.clipped += int(((tensor <= low) | (tensor >= high)).sum())

    def add(self, tensor: torch.Tensor) -> None:
        """Add the values of one result."""
        size = tensor.abs()
        size = size[torch.isfinite(size) & (size > 0)]
        if not size.numel():
            return
        self.peak = max(self.peak, float(size.max()))
        self.least = min(self.least, float(size.min()))
        self.nonzero += size.numel()
        self.subnormal += int((size < SMALLEST).sum())
        if self.operation == "log":
            self.vanished += int((torch.isfinite(tensor) & (tensor < _LEAST_LOG)).sum())


@dataclass
class RangeMonitor:
    """An observer for `harness.mil.observed` that collects the range of every operation."""

    ranges: dict[str, Range] = field(default_factory=dict)

    def __call__(self, step: Step, results: tuple[torch.Tensor, ...]) -> None:
        """Add the FLOAT16 results of an operation, and those of a `quantize`."""
        for result, declared in zip(results, step.types, strict=True):
            name = declared.dtype.name if isinstance(declared, TensorType) else ""
            ends = _ENDS.get(name) if step.operation == "quantize" else None
            if name != "FLOAT16" and ends is None:
                continue
            if step.where not in self.ranges:
                self.ranges[step.where] = Range(step.where, step.operation, _squares(step))
            if ends is None:
                self.ranges[step.where].add(result)
            else:
                self.ranges[step.where].add_quantized(result, *ends)

    def worst(self) -> list[Range]:
        """Return the ranges, the one nearest to overflow first."""
        return sorted(self.ranges.values(), key=lambda row: row.margin)


def _squares(step: Step) -> bool:
    same = len(step.reads) == 2 and step.reads[0] == step.reads[1]
    return step.operation in _SQUARES or (step.operation == "mul" and same)
