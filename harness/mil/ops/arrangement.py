"""Operations that rearrange, order or select values: exact under every policy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("reverse", inputs=("x",), moves_data=True)
def reverse(op: Operation) -> Run:
    """Reverse along ``axes``, or all of them."""
    axes = op.constant("axes")
    return lambda x: x.flip(tuple(range(x.dim())) if axes is None else tuple(axes))


@operation("slice_by_size", inputs=("x",), moves_data=True)
def slice_by_size(op: Operation) -> Run:
    """Slice from ``begin``, ``size`` elements of each axis; -1 stands for all that follow."""
    begin, size = op.required("begin"), op.required("size")
    cuts = tuple(slice(b, None if s == -1 else b + s) for b, s in zip(begin, size, strict=True))
    return lambda x: x[cuts]


@operation("band_part", inputs=("x",), moves_data=True)
def band_part(op: Operation) -> Run:
    """Zero what lies outside a band around the diagonal of the last two axes; -1 keeps a side."""
    lower, upper = op.constant("lower", -1), op.constant("upper", -1)

    def run(x: Tensor) -> Tensor:
        if lower >= 0:
            x = torch.triu(x, -lower)
        return torch.tril(x, upper) if upper >= 0 else x

    return run


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


@operation("pad", inputs=("x",), moves_data=True)
def pad(op: Operation) -> Run:
    """Pad the last axes: ``pad`` holds two sizes for each of them, first axis first."""
    sizes, mode = op.required("pad"), op.constant("mode", "constant")
    value = op.constant("constant_val", 0.0)
    if mode not in _PAD_MODES:
        raise op.error(f"unknown mode '{mode}'")
    pairs = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]
    while mode != "constant" and pairs and pairs[0] == [0, 0]:
        pairs.pop(0)  # torch pads at most three axes so: leave out those that need nothing
    flat = [size for pair in reversed(pairs) for size in pair]
    if mode == "constant":
        return lambda x: functional.pad(x, flat, value=value)

    def run(x: Tensor) -> Tensor:
        # torch wants the padded axes, and one or two before them
        lead = x.shape[: x.dim() - len(pairs)]
        padded = functional.pad(x.reshape(1, -1, *x.shape[len(lead) :]), flat, mode)
        return padded.reshape(*lead, *padded.shape[2:])

    return run


@operation("one_hot", inputs=("indices",), moves_data=True)
def one_hot(op: Operation) -> Run:
    """A new axis in which ``on_value`` stands at the index, ``off_value`` elsewhere."""
    size, axis = op.required("one_hot_vector_size"), op.constant("axis", -1)
    on, off = op.constant("on_value", 1), op.constant("off_value", 0)
    carrier = op.policy.carrier(op.output.dtype)

    def run(indices: Tensor) -> Tensor:
        place = torch.arange(size)
        hot = torch.where(indices.long()[..., None] == place, on, off).to(carrier)
        return hot.movedim(-1, axis)

    return run


@operation("argsort", inputs=("x",), moves_data=True)
def argsort(op: Operation) -> Run:
    """The order along ``axis``, largest first unless ``ascending``; equals stay in order."""
    axis, ascending = op.constant("axis", -1), op.constant("ascending", False)
    return lambda x: _order(x, axis, ascending).to(torch.int32)


@operation("topk", inputs=("x",), moves_data=True)
def topk(op: Operation) -> Run:
    """The ``k`` largest (or smallest) along ``axis``, and where they stand; ordered."""
    k, axis = op.constant("k", 1), op.constant("axis", -1)
    ascending = op.constant("ascending", False)
    with_indices = op.constant("return_indices", True)
    op.constant("sort", True)  # an order is allowed where none is asked for
    op.constant("output_indices_dtype")  # the declared output says the same

    def run(x: Tensor) -> tuple[Tensor, ...]:
        order = _order(x, axis, ascending).narrow(axis, 0, k)
        values = x.gather(axis, order)
        return (values, order.to(torch.int32)) if with_indices else (values,)

    return run


@operation("gather_along_axis", inputs=("x", "indices"), moves_data=True)
def gather_along_axis(op: Operation) -> Run:
    """Take, along ``axis``, the element that ``indices`` names at each other place."""
    axis = op.constant("axis", 0)
    op.constant("validate_indices", False)  # an index out of range is an error in any case
    return lambda x, indices: x.gather(axis, indices.long())


@operation("flatten2d", inputs=("x",), moves_data=True)
def flatten2d(op: Operation) -> Run:
    """Two axes: the product of those before ``axis``, and of the rest."""
    axis = op.constant("axis", 1)

    def run(x: Tensor) -> Tensor:
        first = x.shape[: axis if axis >= 0 else x.dim() + axis].numel()
        return x.reshape(first, -1)

    return run


@operation("shape", inputs=("x",), moves_data=True)
def shape(op: Operation) -> Run:
    """The sizes of ``x``."""
    return lambda x: torch.tensor(x.shape, dtype=torch.int32)


@operation("pixel_shuffle", inputs=("x",), moves_data=True)
def pixel_shuffle(op: Operation) -> Run:
    """Move blocks of channels into space."""
    factor = op.required("upscale_factor")
    return lambda x: functional.pixel_shuffle(x, factor)


@operation("pixel_unshuffle", inputs=("x",), moves_data=True)
def pixel_unshuffle(op: Operation) -> Run:
    """Move space into blocks of channels."""
    factor = op.required("downscale_factor")
    return lambda x: functional.pixel_unshuffle(x, factor)


def _order(x: Tensor, axis: int, ascending: bool) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)
