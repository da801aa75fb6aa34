"""Measures how near the values of each operation come to the limits of fp16.

The values are carried in a wider dtype. fp16 has three limits: the largest value, 65504; the
smallest normal number, 6.1e-5, below which digits are lost one by one; and 255.9, the largest value
whose square is in range. An RMSNorm that squares a larger input in fp16 overflows: `rsqrt(inf)` is
0, the block is zeroed, and all of its outputs are finite (ExecuTorch 19523). Only the range shows
it.

A margin is a factor: with a margin of 12, the values may grow twelvefold. Infinities have no
margin, because masks contain them; they and NaN are counted.

Quantized activations have limits of their own: a scale that was calibrated on too small values
clips the others to the ends of 8 bits (coremltools 2724).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.mil.block import Step
from harness.mil.types import TensorType

_HALF = torch.finfo(torch.float16)
_LEAST_LOG = math.log(2.0**-25)  # half of the smallest subnormal number
LARGEST: float = _HALF.max
SMALLEST: float = _HALF.tiny
_ENDS = {"INT8": (-128, 127), "UINT8": (0, 255)}
_SQUARES = frozenset(("square", "reduce_sum_square"))


@dataclass
class Range:
    """The range of an operation's FLOAT16 results over all calls, or the clipping of a `quantize`.

    It has the largest magnitude, the smallest magnitude above zero, the number of nonzero values,
    and how many of these are subnormal in fp16. `squares` is true for an operation whose results
    are squares or sums of squares: one of that name, or a `mul` of a value by itself. `quantized`
    counts the values that a `quantize` takes, `clipped` those beyond the ends of its dtype. `nan`
    and `infinite` count results that are no finite number.
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
    vanished: int = 0  # results of a `log` whose operand fp16 rounds to 0
    nan: int = 0
    infinite: int = 0

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
        """The fraction of quantized values that are clipped; None for other operations."""
        return self.clipped / self.quantized if self.quantized else None

    def add(self, tensor: torch.Tensor) -> None:
        """Add the values of one result."""
        if self.operation == "log":
            self.vanished += int((torch.isfinite(tensor) & (tensor < _LEAST_LOG)).sum())
        size = np.abs(tensor.numpy())  # a step's small tensors: numpy's calls cost the least
        finite = np.isfinite(size)
        if not finite.all():
            nan = int(np.isnan(size).sum())
            self.nan += nan
            self.infinite += size.size - int(finite.sum()) - nan
            size = size[finite]
        if np.count_nonzero(size) < size.size:
            size = size[size > 0]
        if not size.size:
            return
        self.peak = max(self.peak, float(size.max()))
        self.least = min(self.least, float(size.min()))
        self.nonzero += size.size
        self.subnormal += int(np.count_nonzero(size < SMALLEST))


@dataclass
class RangeMonitor:
    """An observer for `harness.mil.observed` that collects the range of every operation.

    `first_nan` is the first operation, of any float dtype, that gave a NaN.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    first_nan: Step | None = None

    def __call__(self, step: Step, results: tuple[torch.Tensor, ...]) -> None:
        """Add the FLOAT16 results of an operation."""
        for result, declared in zip(results, step.types, strict=True):
            if isinstance(declared, TensorType) and declared.dtype.name == "FLOAT16":
                self._range(step).add(result)
            if self.first_nan is None and result.is_floating_point() and result.isnan().any():
                self.first_nan = step

    def quantized(self, step: Step, operands: Sequence[torch.Tensor | None]) -> None:
        """Count what a `quantize` clips, from the tensors of its input, scale and zero point.

        A value within the dtype moves with the zero point; one that is clipped stays at its end.
        """
        declared, (x, scale, zero) = step.types[0], operands
        ends = _ENDS.get(declared.dtype.name) if isinstance(declared, TensorType) else None
        if ends is None or x is None or scale is None:
            return
        own = torch.zeros(scale.shape) if zero is None else zero.float()
        beyond = [
            step.run(x, scale, own + shift) == end for shift, end in zip((1, -1), ends, strict=True)
        ]
        row = self._range(step)
        row.quantized += x.numel()
        row.clipped += int((beyond[0] | beyond[1]).sum())

    def _range(self, step: Step) -> Range:
        if step.where not in self.ranges:
            self.ranges[step.where] = Range(step.where, step.operation, _squares(step))
        return self.ranges[step.where]

    def worst(self) -> list[Range]:
        """Return the ranges, the one nearest to overflow first."""
        return sorted(self.ranges.values(), key=lambda row: row.margin)


def _squares(step: Step) -> bool:
    same = len(step.reads) == 2 and step.reads[0] == step.reads[1]
    return step.operation in _SQUARES or (step.operation == "mul" and same)
