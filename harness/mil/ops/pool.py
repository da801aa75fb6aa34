"""Pooling over one to three spatial axes.

Space is padded first, so that every window is complete. A sum of squares, a mean and a maximum then
differ only in the function of a window. Along an axis that is shorter than its kernel, the windows
are cut to the axis instead, so that a kernel of any size takes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.conv import flat, pad_type_of, padded_shape, padding


@dataclass(frozen=True)
class _Windows:
    """The positions of the windows, `counts` along each axis.

    `pads` lies before and after each axis. `extra` lies behind it; the last window extends into it
    if the number of results is rounded up (`ceil_mode`).
    """

    kernel: list[int]
    steps: list[int]
    pads: list[int]
    extra: list[int]
    counts: list[int]

    def maximum(self, x: Tensor) -> Tensor:
        return self._reduced(x, torch.amax, -math.inf)

    def total(self, x: Tensor) -> Tensor:
        return self._reduced(x, torch.sum, 0.0)

    def sizes(self, x: Tensor, with_padding: bool) -> Tensor:
        """Return how many elements of each window count in a mean; those in `extra` never do."""
        along = []
        for axis, size in enumerate(x.shape[2:]):
            before, after = self.pads[2 * axis : 2 * axis + 2] if with_padding else (0, 0)
            low, high = self._ends(axis, -before, size + after)
            along.append((high - low).to(x.dtype))
        return reduce(lambda left, right: left[..., None] * right, along)[None, None]

    def _reduced(self, x: Tensor, function: Callable[..., Tensor], empty: float) -> Tensor:
        windows = self
        for axis, size in enumerate(x.shape[2:]):
            if self.kernel[axis] > size:
                x = self._cut(x, axis, function, empty)
                windows = windows._done(axis)
        pairs = [
            size
            for axis, more in enumerate(windows.extra)
            for size in (windows.pads[2 * axis], windows.pads[2 * axis + 1] + more)
        ]
        x = functional.pad(x, flat(pairs), value=empty)
        for axis, (size, step) in enumerate(zip(windows.kernel, windows.steps, strict=True)):
            x = x.unfold(axis + 2, size, step)
        return function(x, tuple(range(-len(self.kernel), 0)))

    def _cut(self, x: Tensor, axis: int, function: Callable[..., Tensor], empty: float) -> Tensor:
        """Reduce the windows of one axis, each cut to the axis; equal ones are computed once."""
        ends = torch.stack(self._ends(axis, 0, x.shape[axis + 2]), 1)
        distinct, places = ends.unique(dim=0, return_inverse=True)
        parts = [
            function(x.narrow(axis + 2, low, high - low), axis + 2, keepdim=True)
            if high > low
            else torch.full_like(x.narrow(axis + 2, 0, 1), empty)
            for low, high in distinct.tolist()
        ]
        return torch.cat(parts, axis + 2).index_select(axis + 2, places)

    def _ends(self, axis: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Return where the windows of an axis begin and end, cut to `low` and `high`."""
        starts = torch.arange(self.counts[axis]) * self.steps[axis] - self.pads[2 * axis]
        return starts.clamp(low, high), (starts + self.kernel[axis]).clamp(low, high)

    def _done(self, axis: int) -> _Windows:
        """Return the windows after one axis was reduced."""
        pads = [*self.pads]
        pads[2 * axis : 2 * axis + 2] = 0, 0
        kernel, steps, extra = ([*values] for values in (self.kernel, self.steps, self.extra))
        kernel[axis], steps[axis], extra[axis] = 1, 1, 0
        return replace(self, kernel=kernel, steps=steps, pads=pads, extra=extra)


@operation("max_pool", inputs=("x",), moves_data=True)
def max_pool(op: Operation) -> Run:
    """Return the largest element of each window without its padding."""
    read = _Pooling(op)
    return lambda x: read.windows(x).maximum(x)


@operation("avg_pool", inputs=("x",))
def avg_pool(op: Operation) -> Run:
    """Return the mean of each window, including its zero padding unless it is excluded."""
    read = _Pooling(op)
    with_padding = not op.constant("exclude_padding_from_average", False)

    def run(x: Tensor) -> Tensor:
        windows = read.windows(x)
        return windows.total(x) / windows.sizes(x, with_padding)

    return run


@operation("l2_pool", inputs=("x",))
def l2_pool(op: Operation) -> Run:
    """Return the square root of each window's sum of squares."""
    read = _Pooling(op)
    return lambda x: torch.sqrt(read.windows(x).total(x * x))


class _Pooling:
    """Reads the parameters that all pooling operations share."""

    def __init__(self, op: Operation) -> None:
        self._op = op
        self._kernel = op.required("kernel_sizes")
        self._steps = op.constant("strides") or [1] * len(self._kernel)
        self._pad = op.constant("pad")
        self._pad_type = pad_type_of(op)
        self._upward = op.constant("ceil_mode", False)
        if min(*self._kernel, *self._steps, 1) < 1:
            raise op.error("kernel sizes and strides must be positive")

    def windows(self, x: Tensor) -> _Windows:
        kernel, steps = self._kernel, self._steps
        pads = padding(self._pad_type, self._pad, x.shape[2:], kernel, steps)
        counts, extra = [], []
        for axis, size in enumerate(x.shape[2:]):
            before, after = pads[2 * axis : 2 * axis + 2]
            room = size + before + after - kernel[axis]
            count = (-(-room // steps[axis]) if self._upward else room // steps[axis]) + 1
            beyond = (count - 1) * steps[axis] >= size + before
            if self._upward and beyond and before + after > 0:
                count -= 1
            counts.append(count)
            extra.append(max(0, (count - 1) * steps[axis] - room))
        self._op.checked_shape((*x.shape[:2], *counts), "windows")
        room = [n + more for n, more in zip(padded_shape(x, pads)[2:], extra, strict=True)]
        padded = [
            count if size > have else more
            for count, size, have, more in zip(counts, kernel, x.shape[2:], room, strict=True)
        ]
        self._op.check_room((*x.shape[:2], *padded), "the padded input")
        return _Windows(kernel, steps, pads, extra, counts)
