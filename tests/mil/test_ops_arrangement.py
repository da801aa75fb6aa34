"""Operations that move, take, put and order values, against numpy; parameters that are computed."""

import numpy as np
import pytest

from tests.mil.programs import run, save_flexible
from tests.mil.rows import Row, each

RNG = np.random.default_rng(11)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 8, 4, 6)).astype(np.float32)
INDICES = np.array([[[2, 0], [1, 1]], [[0, 2], [2, 1]]], dtype=np.int32)
WORDS = RNG.integers(-9, 9, (3, 4)).astype(np.int32)


def put(data, indices, updates, combine):
    """Apply updates one after another, as in the reference's formula."""
    result = data.copy()
    for index, update in zip(indices, updates, strict=True):
        result[index] = combine(result[index], update)
    return result


DATA = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
UPDATES = np.float32([[2, 3, 4, 5], [6, 7, 8, 9], [0.5, 1, 1.5, 2]])
MODES = {
    "update": lambda old, new: new,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def space_to_depth(x, b):
    n, c, h, w = x.shape
    parts = x.transpose(0, 2, 3, 1).reshape(n, h // b, b, w // b, b, c)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // b, w // b, -1).transpose(0, 3, 1, 2)


TOO_LARGE = {"note": "beyond any machine", "error": "ask for"}


def filled(mb, a, shape):
    return mb.fill(shape=shape, value=2.0), mb.identity(x=a)


ROWS = [
    *(
        Row(
            "scatter",
            {"data": DATA, "updates": UPDATES},
            put(DATA, [2, 0, 2], UPDATES, combine),
            note=f"{mode}",
            indices=np.int32([2, 0, 2]),
            mode=mode,
        )
        for mode, combine in MODES.items()
    ),
    Row(
        "scatter",
        {"data": DATA, "updates": UPDATES[:, :2]},
        DATA + np.stack([0 * DATA[:, 0], UPDATES[:, 1], 0 * DATA[:, 0], UPDATES[:, 0]], 1),
        note="along an axis, counted from the end",
        target="iOS15",
        indices=np.int32([-1, 1]),
        axis=1,
    ),
    Row(
        "scatter_along_axis",
        {
            "data": X[0],
            "indices": np.argsort(X[0], 1).astype(np.int32),
            "updates": np.sort(X[0], 1),
        },
        X[0],
        axis=1,
        mode="update",
    ),
    Row(
        "scatter_nd",
        {"data": DATA, "updates": np.float32([10, 20, 30])},
        put(DATA, [(2, 1), (0, 3), (2, 1)], [10, 20, 30], np.add),
        indices=np.int32([[2, 1], [0, 3], [2, 1]]),
    ),
    Row(
        "gather",
        {"x": X},
        np.stack([np.take(X[b], INDICES[b], 0) for b in range(2)]),
        note="in batches",
        indices=INDICES,
        axis=1,
        batch_dims=1,
    ),
    Row(
        "gather",
        {"x": X},
        np.stack([np.take(X[b], INDICES[b], 1) for b in range(2)]),
        note="in batches, a later axis",
        indices=INDICES,
        axis=2,
        batch_dims=1,
    ),
    Row("gather_nd", {"x": X}, np.stack([X[1, 2], X[0, 0]]), indices=np.int32([[1, 2], [0, 0]])),
    Row(
        "gather_nd",
        {"x": X},
        np.stack([X[0, 2, 0], X[1, 0, 2]]),
        note="in batches",
        indices=INDICES[:, 0],
        batch_dims=1,
    ),
    Row(
        "slice_update",
        {"x": X, "update": X[:, :2, :2] * 0 + 7},
        np.where(np.isin(np.arange(4), [0, 2]) & np.isin(np.arange(3), [1, 2])[:, None], 7, X),
        begin=[0, 1, 0],
        end=[2, 3, 4],
        stride=[1, 1, 2],
    ),
    Row(
        "slice_update",
        {"x": X, "update": np.float32([1, 2, 3, 4])},
        np.stack([X[0], np.stack([X[1, 0], X[1, 1], [1, 2, 3, 4]])]),
        note="of a squeezed axis",
        begin=[1, 2, 0],
        end=[0, 0, 0],
        squeeze_mask=[True, True, False],
        end_mask=[False, False, True],
    ),
    Row("sliding_windows", {"x": X}, np.stack([X[:, :2], X[:, 1:]], 1), axis=1, size=2, stride=1),
    Row("depth_to_space", {"x": space_to_depth(IMAGE, 2)}, IMAGE, block_size=2),
    Row("space_to_depth", {"x": IMAGE}, space_to_depth(IMAGE, 2), block_size=2),
    Row(
        "space_to_batch",
        {"x": IMAGE},
        np.concatenate(
            [
                np.pad(IMAGE, ((0, 0), (0, 0), (1, 1), (0, 0)))[:, :, i::2, j::3]
                for i in range(2)
                for j in range(3)
            ]
        ),
        block_shape=[2, 3],
        paddings=[[1, 1], [0, 0]],
    ),
    Row(
        "batch_to_space",
        {"x": IMAGE},
        np.stack([IMAGE[:1], IMAGE[1:]], 3).reshape(1, 8, 8, 6)[:, :, 1:, :-2],
        block_shape=[2, 1],
        crops=[[1, 0], [0, 2]],
    ),
    Row("crop", {"x": IMAGE}, IMAGE[:, :, 1:2, :3], crop_height=[1, 2], crop_width=[0, 3]),
    Row(
        "reverse_sequence",
        {"x": X},
        np.stack([X[:, 0][:, [1, 0, 2, 3]], X[:, 1][:, [2, 1, 0, 3]], X[:, 2]], 1),
        lengths=[2, 3, 0],
        seq_axis=2,
        batch_axis=1,
    ),
    Row(
        "reshape",
        {"x": X[0, :2]},
        X[0, :2].reshape(1, 1, 2, 4),
        note="counted from the last axis",
        target="iOS17",
        shape=[1, 0, -1, 0],
    ),
    Row(
        "reshape_like",
        {"a": X, "b": np.zeros((2, 3, 9), np.float32), "c": np.zeros((7, 4, 1), np.float32)},
        X.reshape(2, 3, 4, 1),
        build=lambda mb, a, b, c: mb.reshape_like(
            x=a, ref_tensors=[b, c], begins=[0, 1], ends=[2, 0], end_masks=[False, True]
        ),
    ),
    Row(
        "pad",
        {"x": IMAGE},
        np.pad(IMAGE, ((1, 1), (1, 2), (3, 3), (0, 5)), mode="reflect"),
        note="of four axes",
        pad=[1, 1, 1, 2, 3, 3, 0, 5],
        mode="reflect",
    ),
    Row(
        "topk",
        {"x": X},
        (np.sort(X, -1)[..., :3], np.argsort(X, -1)[..., :3]),
        note="smallest first",
        k=3,
        axis=-1,
        ascending=True,
    ),
    Row(
        "fill",
        {"a": X},
        (X, np.full((2, 3), 1.5)),
        build=lambda mb, a: (mb.identity(x=a), mb.fill(shape=[2, 3], value=1.5)),
    ),
    Row("fill_like", {"ref_tensor": X}, np.full(X.shape, 2.5), value=2.5),
    Row(
        "range_1d",
        {"a": np.float32([1.1])},
        np.arange(-1, 1.1, 0.4),
        build=lambda mb, a: mb.range_1d(
            start=np.float32(-1), end=mb.squeeze(x=a), step=np.float32(0.4)
        ),
    ),
    Row(
        "range_1d",
        {"a": np.int32([5])},
        np.array([5, 2, -1]),
        note="downward",
        build=lambda mb, a: mb.range_1d(start=mb.squeeze(x=a), end=np.int32(-4), step=np.int32(-3)),
    ),
    Row("non_zero", {"x": np.float32([[0, 1, 0], [2, 0, 3]])}, np.array([[0, 1], [1, 0], [1, 2]])),
    Row("tile", {"x": X, "reps": np.int32([1 << 12, 1 << 10, 1 << 9])}, **TOO_LARGE),
    Row("pad", {"x": X, "pad": np.int32([0, 1 << 30, 0, 0, 0, 0])}, **TOO_LARGE),
    Row(
        "fill",
        {"a": X, "shape": np.int32([1 << 20, 1 << 20])},
        note="beyond any machine",
        error="ask for 1099511627776 elements",
        build=filled,
    ),
    Row(
        "fill",
        {"a": X, "shape": np.int32([-1, 2])},
        note="of a negative size",
        error="which a tensor cannot have",
        build=filled,
    ),
    *(
        Row(
            name,
            {"data": DATA, "indices": np.int32(indices), "updates": UPDATES[:1]},
            note=f"at {index}",
            error=f"an index out of range: {index} to",
            target="iOS17",
        )
        for index in (-1, 3)
        for name, indices in {
            "scatter": [index],
            "scatter_nd": [[index]],
            "scatter_along_axis": [[index] * 4],
        }.items()
    ),
]


@each(ROWS)
def test_an_operation_gives_what_numpy_gives(row):
    row.check(2e-6)


COMPUTED = [
    Row("reshape", {"x": X, "shape": np.int32([4, -1])}, X.reshape(4, 6), note="computed"),
    Row(
        "slice_by_index",
        {"x": X, "begin": np.int32([1, 0, 1])},
        X[1:, :, 1:3],
        note="computed",
        end=[2, 3, 3],
    ),
    Row(
        "slice_by_size",
        {"x": X, "begin": np.int32([0, 1, 2])},
        X[:1, 1:3, 2:],
        note="computed",
        size=[1, 2, -1],
    ),
    Row("tile", {"x": X, "reps": np.int32([2, 1, 3])}, np.tile(X, (2, 1, 3)), note="computed"),
    Row(
        "pad",
        {"x": X, "pad": np.int32([0, 0, 1, 0, 2, 3])},
        np.pad(X, ((0, 0), (1, 0), (2, 3))),
        note="computed",
    ),
    Row(
        "fill",
        {"a": X, "shape": np.int32([3, 2])},
        (np.full((3, 2), 2.0), X),
        note="computed",
        build=filled,
    ),
    Row(
        "resize",
        {"x": X, "shape": np.int32([3, 7])},
        np.stack([[np.interp(np.linspace(0, 3, 7), range(4), row) for row in m] for m in X]),
        note="computed",
        resized_dims=np.uint32(1),
        sampling_mode="ALIGN_CORNERS",
    ),
]


@each(COMPUTED)
def test_a_parameter_may_be_computed_by_the_program(row):
    row.check(1e-5)


def test_a_computed_parameter_is_read_at_every_call():
    package = save_flexible(
        lambda mb, a, b: mb.reshape(x=a, shape=b), [((2, 6), "fp32"), ((2,), "int32")]
    )
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    for shape in ([3, 4], [4, 3], [3, 4], [1, -1]):
        (result,) = run(package, values, np.int32(shape))
        np.testing.assert_array_equal(result, values.reshape(shape))


def test_a_computed_parameter_that_must_be_constant_is_refused_by_name():
    from harness.errors import ArtifactError
    from harness.mil import get_policy, load_function

    package = save_flexible(
        lambda mb, a, b: mb.mul(x=mb.transpose(x=a, perm=[1, 0]), y=mb.cast(x=b, dtype="fp32")),
        [((2, 2), "fp32"), ((2,), "int32")],
    )
    function = package.functions["main"]
    for op in function.block_specializations[function.opset].operations:
        if op.type == "transpose":
            op.inputs["perm"].arguments[0].name = "b"
    with pytest.raises(ArtifactError, match="transpose '.*': parameter 'perm' is computed"):
        load_function(package, "main", get_policy("widen"))


def test_one_program_runs_at_every_size():
    package = save_flexible(
        lambda mb, a: mb.reshape(x=a, shape=mb.concat(values=[mb.shape(x=a), [1]], axis=0)),
        [((None, 3), "fp32")],
    )
    for size in (1, 5, 64):
        values = RNG.standard_normal((size, 3)).astype(np.float32)
        np.testing.assert_array_equal(run(package, values)[0], values[..., None])
