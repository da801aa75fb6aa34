"""Pooling over one to three spatial axes.

Space is padded first, so that every window is complete. A sum of squares, a mean and a maximum then
differ only in the function of a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.conv import flat, pad_type_of, padded_shape, padding


@dataclass(frozen=True)
class _Windows:
    """The positions of the windows.

    `pads` lies before and after each axis. `extra` lies behind it; the last window extends into it
    if the number of results is rounded up (`ceil_mode`).
    """

    kernel: list[int]
    steps: list[int]
    pads: list[int]
    extra: list[int]

    def padded(self, x: Tensor, value: float) -> Tensor:
        pairs = [
            size
            for axis, more in enumerate(self.extra)
            for size in (self.pads[2 * axis], self.pads[2 * axis + 1] + more)
        ]
        return functional.pad(x, flat(pairs), value=value)

    def maximum(self, x: Tensor) -> Tensor:
        return _unfolded(self.padded(x, -math.inf), self).amax(_last(self))

    def total(self, x: Tensor) -> Tensor:
        return _unfolded(self.padded(x, 0.0), self).sum(_last(self))

    def counts(self, x: Tensor, with_padding: bool) -> Tensor:
        """Return how many elements of each window count in a mean; those in `extra` never do."""
        ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
        inner = functional.pad(ones, flat(self.pads), value=float(with_padding))
        outside = [size for more in self.extra for size in (0, more)]
        return _unfolded(functional.pad(inner, flat(outside)), self).sum(_last(self))


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
        return windows.total(x) / windows.counts(x, with_padding)

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
        self._op.check_room((*x.shape[:2], *room), "the padded input")
        return _Windows(kernel, steps, pads, extra)


def _unfolded(x: Tensor, windows: _Windows) -> Tensor:
    """Return a view of all windows; the kernel's axes are the last ones."""
    for axis, (size, step) in enumerate(zip(windows.kernel, windows.steps, strict=True)):
        x = x.unfold(axis + 2, size, step)
    return x


def _last(windows: _Windows) -> tuple[int, ...]:
    return tuple(range(-len(windows.kernel), 0))
