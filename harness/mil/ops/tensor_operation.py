"""Operations that make, join, cut, pad or order tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("identity", inputs=("x",), moves_data=True)
def identity(op: Operation) -> Run:
    """Return `x`."""
    return lambda x: x


@operation("concat", inputs=("values",), moves_data=True)
def concat(op: Operation) -> Run:
    """Join along an axis, one tensor after another, or element by element with `interleave`.

    A value of rank 0 counts as a vector of one: coremltools joins sizes to a shape so.
    """
    axis, interleave = op.required("axis"), op.constant("interleave", False)
    if not interleave:
        return partial(_joined, axis)

    def run(*values: Tensor) -> Tensor:
        place = axis % values[0].dim()
        return torch.stack(values, place + 1).flatten(place, place + 1)

    return run


def _joined(axis: int, *values: Tensor) -> Tensor:
    """Join along an axis; ExecuTorch's exports join single values, which need no copy."""
    if len(values) == 1 and values[0].dim():
        return values[0]
    return torch.cat([value if value.dim() else value.reshape(1) for value in values], axis)


@operation("stack", inputs=("values",), moves_data=True)
def stack(op: Operation) -> Run:
    """Join along a new axis."""
    axis = op.required("axis")
    return lambda *values: torch.stack(values, axis)


@operation("split", inputs=("x",), moves_data=True)
def split(op: Operation) -> Run:
    """Cut along an axis into equal parts or parts of given sizes."""
    axis, sizes = op.required("axis"), op.constant("split_sizes")
    count = op.constant("num_splits")
    if sizes is not None:
        return lambda x: torch.split(x, list(sizes), axis)
    return lambda x: torch.chunk(x, count or len(op.outputs), axis)


@operation("tile", inputs=("x",), computed=("reps",), moves_data=True)
def tile(op: Operation) -> Run:
    """Repeat along each axis; the result must have the declared size."""
    reps = tuple(op.required("reps"))

    def run(x: Tensor) -> Tensor:
        op.check_count(x.numel() * math.prod(reps), f"reps {list(reps)}")
        return x.repeat(reps)

    return run


@operation("fill", inputs=(), computed=("shape",))
def fill(op: Operation) -> Run:
    """Make a tensor of one value."""
    shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
    value = op.constant("value", 0.0)
    return lambda: torch.full(shape, value, dtype=op.carrier)


@operation("fill_like", inputs=("ref_tensor",))
def fill_like(op: Operation) -> Run:
    """Make a tensor of one value with the shape of another."""
    value = op.constant("value", 0.0)
    return lambda reference: torch.full(reference.shape, value, dtype=op.carrier)


@operation("range_1d", inputs=(), computed=("start", "end", "step"))
def range_1d(op: Operation) -> Run:
    """Return the numbers from `start` to `end`, `step` apart, without `end`."""
    start, end, step = op.required("start"), op.required("end"), op.required("step")
    count = max(0, math.ceil((end - start) / step))
    op.check_count(count, f"{start} to {end} in steps of {step}")
    # a product, not a running sum: its error does not grow along the range
    return lambda: (start + step * torch.arange(count, dtype=_wide(op))).to(op.carrier)


@operation("shape", inputs=("x",), moves_data=True)
def shape(op: Operation) -> Run:
    """Return the sizes of `x`."""
    return lambda x: torch.tensor(x.shape, dtype=torch.int32)


@operation(
    "one_hot",
    inputs=("indices",),
    computed=("one_hot_vector_size", "on_value", "off_value"),
    moves_data=True,
)
def one_hot(op: Operation) -> Run:
    """Add an axis with `on_value` at the index and `off_value` elsewhere."""
    size, axis = op.required("one_hot_vector_size"), op.constant("axis", -1)
    on, off = op.constant("on_value", 1), op.constant("off_value", 0)

    def run(indices: Tensor) -> Tensor:
        op.check_count(indices.numel() * size, f"vectors of {size}")
        place = torch.arange(size, dtype=torch.int32)
        hot = torch.full((*indices.shape, size), off, dtype=op.carrier)
        return hot.masked_fill_(indices[..., None] == place, on).movedim(-1, axis)

    return run


@operation("non_zero", inputs=("x",), moves_data=True)
def non_zero(op: Operation) -> Run:
    """Return the indices [N, rank] of all elements that are not zero, in order."""
    return lambda x: torch.nonzero(x).to(torch.int32)


def _wide(op: Operation) -> torch.dtype:
    return torch.float64 if op.is_float else torch.int64


@operation("band_part", inputs=("x",), moves_data=True)
def band_part(op: Operation) -> Run:
    """Zero all elements outside a band around the diagonal of the last two axes.

    A size of -1 keeps all elements of that side.
    """
    lower, upper = op.constant("lower", -1), op.constant("upper", -1)

    def run(x: Tensor) -> Tensor:
        if lower >= 0:
            x = torch.triu(x, -lower)
        return torch.tril(x, upper) if upper >= 0 else x

    return run


@operation("pad", inputs=("x",), computed=("pad",), moves_data=True)
def pad(op: Operation) -> Run:
    """Pad the last axes; `pad` holds two sizes for each of them, beginning with the first."""
    sizes, mode = op.required("pad"), op.constant("mode", "constant")
    value = op.constant("constant_val", 0.0)
    if mode not in ("constant", "reflect", "replicate"):
        raise op.error(f"unknown mode '{mode}'")
    pairs = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]

    def run(x: Tensor) -> Tensor:
        first = x.dim() - len(pairs)
        sums = [0] * first + [sum(pair) for pair in pairs]
        shape = [size + more for size, more in zip(x.shape, sums, strict=True)]
        op.check_count(math.prod(shape), f"sizes {sizes}")
        if mode == "constant":
            flat = [size for pair in reversed(pairs) for size in pair]
            return functional.pad(x, flat, value=value)
        for axis, pair in enumerate(pairs, start=first):
            if pair != [0, 0]:
                x = x.index_select(axis, _beyond(op, x.shape[axis], pair, mode))
        return x

    return run


def _beyond(op: Operation, size: int, pair: list[int], mode: str) -> Tensor:
    """Return the indices of an axis that is padded with its own values."""
    if size == 0 or (mode == "reflect" and max(pair) >= size):
        raise op.error(f"an axis of {size} cannot be padded by {pair} with mode {mode}")
    indices = torch.arange(-pair[0], size + pair[1])
    if mode == "replicate":
        return indices.clamp(0, size - 1)
    return size - 1 - (size - 1 - indices.abs()).abs()


@operation("flatten2d", inputs=("x",), moves_data=True)
def flatten2d(op: Operation) -> Run:
    """Reshape to two axes: the product of those before `axis`, and that of the rest."""
    axis = op.constant("axis", 1)

    def run(x: Tensor) -> Tensor:
        first = x.shape[: axis if axis >= 0 else x.dim() + axis].numel()
        return x.reshape(first, -1)

    return run


@operation("argsort", inputs=("x",), moves_data=True)
def argsort(op: Operation) -> Run:
    """Return the order along `axis`, largest first unless `ascending`; equals keep their order."""
    axis, ascending = op.constant("axis", -1), op.constant("ascending", False)
    return lambda x: _order(x, axis, ascending).to(torch.int32)


@operation("topk", inputs=("x",), computed=("k",), moves_data=True)
def topk(op: Operation) -> Run:
    """Return the `k` largest (or smallest) elements along `axis`, in order, and their indices.

    A `k` of -1 means all.
    """
    k, axis = op.constant("k", 1), op.constant("axis", -1)
    ascending = op.constant("ascending", False)
    with_indices = op.constant("return_indices", True)
    op.constant("sort", True)  # the result may be ordered in any case
    op.constant("output_indices_dtype")  # the declared output has it too

    def run(x: Tensor) -> tuple[Tensor, ...]:
        order = _order(x, axis, ascending).narrow(axis, 0, x.shape[axis] if k == -1 else k)
        values = x.gather(axis, order)
        return (values, order.to(torch.int32)) if with_indices else (values,)

    return run


def _order(x: Tensor, axis: int, ascending: bool) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@operation("cumsum", inputs=("x",))
def cumsum(op: Operation) -> Run:
    """Sum along `axis`, backwards with `reverse`, without the element itself with `exclusive`."""
    axis, exclusive = op.constant("axis", 0), op.constant("exclusive", False)
    reverse = op.constant("reverse", False)

    def run(x: Tensor) -> Tensor:
        ordered = x.flip(axis) if reverse else x
        total = torch.cumsum(ordered, axis).to(x.dtype)
        total = total - ordered if exclusive else total
        return total.flip(axis) if reverse else total

    return run


@operation("non_maximum_suppression", inputs=("boxes", "scores"), moves_data=True)
def non_maximum_suppression(op: Operation) -> Run:
    """Select boxes [n, B, 4] (center x, center y, width, height) by scores [n, B, K], best first.

    A box's score is the best of its classes; with `per_class_suppression` only boxes of the same
    best class suppress each other. Results are padded with zeros, indices with -1; if no box passes
    the threshold, the best one is selected. Up to iOS 16 there are a score threshold and a fourth
    result, the number of boxes; from iOS 17 on the boxes are on the last axis.
    """
    overlap, max_boxes = op.required("iou_threshold"), op.required("max_boxes")
    by_class = op.constant("per_class_suppression", False)
    boxes_last = op.since("CoreML7")
    least = float("-inf") if boxes_last else op.required("score_threshold")

    def run(boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        if boxes_last:
            boxes, scores = boxes.mT, scores.mT
        op.checked_shape((len(boxes), max_boxes, 4), f"max_boxes {max_boxes}")
        chosen_boxes = boxes.new_zeros(len(boxes), max_boxes, 4)
        chosen_scores = scores.new_zeros(len(boxes), max_boxes, scores.shape[2])
        indices = torch.full((len(boxes), max_boxes), -1, dtype=torch.int32)
        counts = torch.zeros(len(boxes), dtype=torch.int32)
        for batch, (some, marks) in enumerate(zip(boxes, scores, strict=True)):
            best, classes = marks.max(1)
            order, values = (
                torch.argsort(best, descending=True, stable=True).tolist(),
                best.tolist(),
            )
            better = [index for index in order if values[index] > least]
            by = classes.tolist() if by_class else None
            chosen = pick_boxes(some, better or order[:1], by, overlap, max_boxes)
            count = len(chosen)
            chosen_boxes[batch, :count], chosen_scores[batch, :count] = some[chosen], marks[chosen]
            indices[batch, :count] = torch.tensor(chosen, dtype=torch.int32)
            counts[batch] = count
        if boxes_last:
            return chosen_boxes.mT, chosen_scores.mT, indices
        return chosen_boxes, chosen_scores, indices, counts

    return run


def pick_boxes(
    boxes: Tensor,
    order: Sequence[int],
    classes: Sequence[int] | None,
    overlap: float,
    max_boxes: int,
) -> list[int]:
    """Return the indices of `order` whose boxes [B, 4] overlap no box before them by too much.

    With `classes` [B], only boxes of one class suppress each other.
    """
    chosen: list[int] = []
    for index in order:
        if len(chosen) == max_boxes:
            break
        rivals = [k for k in chosen if classes is None or classes[k] == classes[index]]
        if not rivals or bool((_overlaps(boxes[index], boxes[rivals]) <= overlap).all()):
            chosen.append(index)
    return chosen


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union, 0 for boxes without area."""
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    lows, highs = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
    sides = (torch.minimum(high, highs) - torch.maximum(low, lows)).clamp(min=0)
    shared = sides.prod(1)
    union = box[2:].prod() + others[:, 2:].prod(1) - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(shared))
