"""The sound programs that cases mutate.

Together they have an operation of every kind that can be wrong about a size, control flow, lists,
random numbers, and constants in the specification and in the weight file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def save_all(folder: Path) -> None:
    """Build and save the programs as .mlpackage folders."""
    for build, shape in PROGRAMS:
        save_package(build, shape, folder / f"{build.__name__}.mlpackage")


def save_package(build: Any, shape: tuple[int, ...], path: Path) -> None:
    """Build a program of one input, and save it."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    def main(a: Any) -> Any:
        return build(mb, a)

    model = ct.convert(
        mb.program([mb.TensorSpec(shape)], opset_version=ct.target.iOS18)(main),
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))


def small(mb: Any, a: Any) -> Any:
    """Build a linear layer of packed weights, and a condition."""
    weight = mb.constexpr_blockwise_shift_scale(
        data=np.ones((3, 4), np.int8), scale=np.ones((3, 1), np.float32)
    )
    x = mb.linear(x=a, weight=weight, bias=np.linspace(0, 1, 3, dtype=np.float32))
    x = mb.slice_by_index(x=x, begin=[0, 0], end=[2, 3])
    positive = mb.greater(x=mb.reduce_sum(x=x), y=0.0)
    return mb.cond(
        pred=positive, _true_fn=lambda: mb.relu(x=x), _false_fn=lambda: mb.gelu(x=x, mode="EXACT")
    )


def arrangement(mb: Any, a: Any) -> Any:
    """Build shapes, slices, reductions and selections, and a weight that is a constexpr result."""
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(16, 4)
    x = mb.reshape(x=mb.relu(x=mb.linear(x=a, weight=weight)), shape=[2, 4, 4])
    x = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1]), axes=[0])
    first, second = mb.split(x=mb.squeeze(x=x, axes=[0]), num_splits=2, axis=1)
    x = mb.concat(values=[first, second], axis=2)
    x = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[2, 2, 4], stride=[1, 1, 2])
    x = mb.gather(x=mb.tile(x=x, reps=[1, 2, 1]), indices=np.array([1, 0], np.int32), axis=1)
    x = mb.mul(x=mb.softmax(x=x, axis=-1), y=mb.reduce_mean(x=x, axes=[1], keep_dims=True))
    x = mb.pad(x=mb.matmul(x=x, y=x, transpose_y=True), pad=[1, 1])
    x = mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32")
    x = mb.gelu(x=mb.layer_norm(x=mb.clip(x=x, alpha=-1.0, beta=1.0), axes=[-1]), mode="EXACT")
    _, places = mb.topk(x=x, k=2, axis=-1)
    counts = mb.reduce_sum(x=mb.one_hot(indices=places, one_hot_vector_size=5), axes=[-1])
    scaled = mb.constexpr_blockwise_shift_scale(
        data=np.ones((4, 4), np.int8), scale=np.ones((2, 1), np.float32)
    )
    return mb.cast(x=counts, dtype="fp32"), mb.matmul(x=a, y=scaled)


def images(mb: Any, a: Any) -> Any:
    """Build convolution, pooling, resizing, sampling and filling."""
    image = mb.reshape(x=a, shape=[1, 2, 4, 4])
    kernel = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 2, 2, 2)
    y = mb.conv_transpose(x=image, weight=kernel, strides=[2, 2])
    y = mb.conv(x=y, weight=kernel, strides=[1, 1], pad_type="same")
    y = mb.max_pool(x=y, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same")
    y = mb.avg_pool(
        x=y, kernel_sizes=[2, 2], strides=[1, 1], pad_type="custom", pad=[1] * 4, ceil_mode=True
    )
    y = mb.resize_bilinear(x=y, target_size_height=4, target_size_width=4)
    y = mb.upsample_nearest_neighbor(x=y, scale_factor_height=2, scale_factor_width=2)
    boxes = np.array([[0, 0, 2, 2]], np.float32)
    y = mb.crop_resize(x=y, boxes=boxes, target_height=3, target_width=3)
    y = mb.add(x=y, y=mb.fill(shape=mb.shape(x=y), value=2.0))
    y = mb.pad(x=y, pad=[1, 1, 2, 2], mode="reflect")
    flat = mb.reshape(x=a, shape=[1, 4, 8])
    kept, _, _ = mb.non_maximum_suppression(
        boxes=flat, scores=flat, iou_threshold=np.float32(0.5), max_boxes=3
    )[:3]
    return y, mb.space_to_depth(x=image, block_size=2), kept


def sequences(mb: Any, a: Any) -> Any:
    """Build recurrence, lists, a loop, a condition, random numbers and a computed range."""
    rows = mb.reshape(x=a, shape=[6, 1, 6])
    start = np.zeros((1, 3), np.float32)
    gates = {n: np.full((n * 3, 6), 0.1, np.float32) for n in (3, 4)}
    again = {n: np.full((n * 3, 3), 0.1, np.float32) for n in (3, 4)}
    mb.gru(x=rows, initial_h=start, weight_ih=gates[3], weight_hh=again[3], output_sequence=True)
    _, hidden, _ = mb.lstm(
        x=rows, initial_h=start, initial_c=start, weight_ih=gates[4], weight_hh=again[4]
    )
    scattered = mb.scatter(data=start, indices=np.array([0], np.int32), updates=hidden)
    items = mb.make_list(init_length=2, elem_shape=(1, 3))
    _, items = mb.while_loop(
        _cond=lambda i, _: mb.less(x=i, y=np.int32(3)),
        _body=lambda i, ls: (
            mb.add(x=i, y=np.int32(1)),
            mb.list_write(ls=ls, index=i, value=scattered),
        ),
        loop_vars=(mb.const(val=np.int32(0)), items),
    )
    gathered = mb.list_gather(ls=items, indices=[0, 1, 2])
    positive = mb.greater(x=mb.reduce_sum(x=a), y=0.0)
    chosen = mb.cond(
        pred=positive,
        _true_fn=lambda: mb.relu(x=gathered),
        _false_fn=lambda: mb.abs(x=gathered),
    )
    noise = mb.random_normal(shape=[3, 4], seed=1)
    count = mb.cast(x=mb.reduce_sum(x=noise), dtype="int32")
    numbers = mb.range_1d(start=np.int32(0), end=count, step=np.int32(1))
    updated = mb.slice_update(x=chosen, update=chosen, begin=[0, 0, 0], end=[3, 1, 3])
    return updated, mb.cumsum(x=noise, axis=0), numbers


PROGRAMS = ((arrangement, (2, 4)), (images, (32,)), (sequences, (36,)))
