"""Operations that move, take, put and order values, against numpy; parameters that are computed."""

import numpy as np
import pytest

from harness.errors import HarnessError
from tests.mil.cases import check, save_flexible
from tests.mil.programs import execute, run

RNG = np.random.default_rng(11)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 8, 4, 6)).astype(np.float32)
PLACES = np.array([[[2, 0], [1, 1]], [[0, 2], [2, 1]]], dtype=np.int32)
WORDS = RNG.integers(-9, 9, (3, 4)).astype(np.int32)


def put(data, places, updates, combine):
    """Apply updates one after another, as the reference's formula reads."""
    result = data.copy()
    for place, update in zip(places, updates, strict=True):
        result[place] = combine(result[place], update)
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


CASES = {
    **{
        f"scatter {mode}": (
            lambda mb, a, b, mode=mode: mb.scatter(
                data=a, indices=np.int32([2, 0, 2]), updates=b, mode=mode
            ),
            (DATA, UPDATES),
            put(DATA, [2, 0, 2], UPDATES, combine),
        )
        for mode, combine in MODES.items()
    },
    "scatter along an axis, counted from the end": (
        lambda mb, a, b: mb.scatter(data=a, indices=np.int32([-1, 1]), updates=b, axis=1),
        (DATA, UPDATES[:, :2]),
        DATA + np.stack([0 * DATA[:, 0], UPDATES[:, 1], 0 * DATA[:, 0], UPDATES[:, 0]], 1),
        {"target": "iOS15"},
    ),
    "scatter_along_axis": (
        lambda mb, a, b, c: mb.scatter_along_axis(
            data=a, indices=b, updates=c, axis=1, mode="update"
        ),
        (X[0], np.argsort(X[0], 1).astype(np.int32), np.sort(X[0], 1)),
        X[0],
    ),
    "scatter_nd": (
        lambda mb, a, b: mb.scatter_nd(
            data=a, indices=np.int32([[2, 1], [0, 3], [2, 1]]), updates=b
        ),
        (DATA, np.float32([10, 20, 30])),
        put(DATA, [(2, 1), (0, 3), (2, 1)], [10, 20, 30], np.add),
    ),
    "gather in batches": (
        lambda mb, a: mb.gather(x=a, indices=PLACES, axis=1, batch_dims=1),
        (X,),
        np.stack([np.take(X[b], PLACES[b], 0) for b in range(2)]),
    ),
    "gather in batches, a later axis": (
        lambda mb, a: mb.gather(x=a, indices=PLACES, axis=2, batch_dims=1),
        (X,),
        np.stack([np.take(X[b], PLACES[b], 1) for b in range(2)]),
    ),
    "gather_nd": (
        lambda mb, a: mb.gather_nd(x=a, indices=np.int32([[1, 2], [0, 0]])),
        (X,),
        np.stack([X[1, 2], X[0, 0]]),
    ),
    "gather_nd in batches": (
        lambda mb, a: mb.gather_nd(x=a, indices=PLACES[:, 0], batch_dims=1),
        (X,),
        np.stack([X[0, 2, 0], X[1, 0, 2]]),
    ),
    "slice_update": (
        lambda mb, a, b: mb.slice_update(
            x=a, update=b, begin=[0, 1, 0], end=[2, 3, 4], stride=[1, 1, 2]
        ),
        (X, X[:, :2, :2] * 0 + 7),
        np.where(np.isin(np.arange(4), [0, 2]) & np.isin(np.arange(3), [1, 2])[:, None], 7, X),
    ),
    "slice_update of a squeezed axis": (
        lambda mb, a, b: mb.slice_update(
            x=a,
            update=b,
            begin=[1, 2, 0],
            end=[0, 0, 0],
            squeeze_mask=[True, True, False],
            end_mask=[False, False, True],
        ),
        (X, np.float32([1, 2, 3, 4])),
        np.stack([X[0], np.stack([X[1, 0], X[1, 1], [1, 2, 3, 4]])]),
    ),
    "sliding_windows": (
        lambda mb, a: mb.sliding_windows(x=a, axis=1, size=2, stride=1),
        (X,),
        np.stack([X[:, :2], X[:, 1:]], 1),
    ),
    "depth_to_space": (
        lambda mb, a: mb.depth_to_space(x=a, block_size=2),
        (space_to_depth(IMAGE, 2),),
        IMAGE,
    ),
    "space_to_depth": (
        lambda mb, a: mb.space_to_depth(x=a, block_size=2),
        (IMAGE,),
        space_to_depth(IMAGE, 2),
    ),
    "space_to_batch": (
        lambda mb, a: mb.space_to_batch(x=a, block_shape=[2, 3], paddings=[[1, 1], [0, 0]]),
        (IMAGE,),
        np.concatenate(
            [
                np.pad(IMAGE, ((0, 0), (0, 0), (1, 1), (0, 0)))[:, :, i::2, j::3]
                for i in range(2)
                for j in range(3)
            ]
        ),
    ),
    "batch_to_space": (
        lambda mb, a: mb.batch_to_space(x=a, block_shape=[2, 1], crops=[[1, 0], [0, 2]]),
        (IMAGE,),
        np.stack([IMAGE[:1], IMAGE[1:]], 3).reshape(1, 8, 8, 6)[:, :, 1:, :-2],
    ),
    "crop": (
        lambda mb, a: mb.crop(x=a, crop_height=[1, 2], crop_width=[0, 3]),
        (IMAGE,),
        IMAGE[:, :, 1:2, :3],
    ),
    "reverse_sequence": (
        lambda mb, a: mb.reverse_sequence(x=a, lengths=[2, 3, 0], seq_axis=2, batch_axis=1),
        (X,),
        np.stack([X[:, 0][:, [1, 0, 2, 3]], X[:, 1][:, [2, 1, 0, 3]], X[:, 2]], 1),
    ),
    "reshape counted from the last axis": (
        lambda mb, a: mb.reshape(x=a, shape=[1, 0, -1, 0]),
        (X[0, :2],),
        X[0, :2].reshape(1, 1, 2, 4),
        {"target": "iOS17"},
    ),
    "reshape_like": (
        lambda mb, a, b, c: mb.reshape_like(
            x=a, ref_tensors=[b, c], begins=[0, 1], ends=[2, 0], end_masks=[False, True]
        ),
        (X, np.zeros((2, 3, 9), np.float32), np.zeros((7, 4, 1), np.float32)),
        X.reshape(2, 3, 4, 1),
    ),
    "pad of four axes": (
        lambda mb, a: mb.pad(x=a, pad=[1, 1, 1, 2, 3, 3, 0, 5], mode="reflect"),
        (IMAGE,),
        np.pad(IMAGE, ((1, 1), (1, 2), (3, 3), (0, 5)), mode="reflect"),
    ),
    "topk, smallest first": (
        lambda mb, a: mb.topk(x=a, k=3, axis=-1, ascending=True),
        (X,),
        (np.sort(X, -1)[..., :3], np.argsort(X, -1)[..., :3]),
    ),
    "fill": (
        lambda mb, a: (mb.identity(x=a), mb.fill(shape=[2, 3], value=1.5)),
        (X,),
        (X, np.full((2, 3), 1.5)),
    ),
    "fill_like": (lambda mb, a: mb.fill_like(ref_tensor=a, value=2.5), (X,), np.full(X.shape, 2.5)),
    "range_1d": (
        lambda mb, a: mb.range_1d(start=np.float32(-1), end=mb.squeeze(x=a), step=np.float32(0.4)),
        (np.float32([1.1]),),
        np.arange(-1, 1.1, 0.4),
    ),
    "range_1d downward": (
        lambda mb, a: mb.range_1d(start=mb.squeeze(x=a), end=np.int32(-4), step=np.int32(-3)),
        (np.int32([5]),),
        np.array([5, 2, -1]),
    ),
    "non_zero": (
        lambda mb, a: mb.non_zero(x=a),
        (np.float32([[0, 1, 0], [2, 0, 3]]),),
        np.array([[0, 1], [1, 0], [1, 2]]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_numpy_gives(name):
    check(CASES[name])


COMPUTED = {
    "reshape": (lambda mb, a, b: mb.reshape(x=a, shape=b), [4, -1], X.reshape(4, 6)),
    "slice_by_index": (
        lambda mb, a, b: mb.slice_by_index(x=a, begin=b, end=[2, 3, 3]),
        [1, 0, 1],
        X[1:, :, 1:3],
    ),
    "slice_by_size": (
        lambda mb, a, b: mb.slice_by_size(x=a, begin=b, size=[1, 2, -1]),
        [0, 1, 2],
        X[:1, 1:3, 2:],
    ),
    "tile": (lambda mb, a, b: mb.tile(x=a, reps=b), [2, 1, 3], np.tile(X, (2, 1, 3))),
    "pad": (
        lambda mb, a, b: mb.pad(x=a, pad=b),
        [0, 0, 1, 0, 2, 3],
        np.pad(X, ((0, 0), (1, 0), (2, 3))),
    ),
    "fill": (
        lambda mb, a, b: mb.add(x=mb.fill(shape=b, value=2.0), y=mb.reduce_sum(x=a)),
        [3, 2],
        np.full((3, 2), 2 + X.sum()),
    ),
    "resize": (
        lambda mb, a, b: mb.resize(
            x=a, shape=b, resized_dims=np.uint32(1), sampling_mode="ALIGN_CORNERS"
        ),
        [3, 7],
        np.stack([[np.interp(np.linspace(0, 3, 7), range(4), row) for row in m] for m in X]),
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_parameter_may_be_computed_by_the_program(name):
    build, parameter, expected = COMPUTED[name]
    (result,) = execute(build, X, np.int32(parameter))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize(
    ("build", "parameter", "problem"),
    [
        (lambda mb, a, b: mb.tile(x=a, reps=b), [1 << 12, 1 << 10, 1 << 9], "ask for"),
        (lambda mb, a, b: mb.pad(x=a, pad=b), [0, 1 << 30, 0, 0, 0, 0], "ask for"),
        (lambda mb, a, b: mb.fill(shape=b), [1 << 20, 1 << 20], "ask for 1099511627776 elements"),
        (lambda mb, a, b: mb.fill(shape=b), [-1, 2], "which a tensor cannot have"),
    ],
)
def test_nothing_is_made_that_no_machine_could_hold(build, parameter, problem):
    def both(mb, a, b):
        return build(mb, a, b), mb.identity(x=a)

    with pytest.raises(HarnessError, match=problem):
        execute(both, X, np.int32(parameter))


@pytest.mark.parametrize("name", ["scatter", "scatter_nd", "scatter_along_axis"])
@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_named(name, index):
    indices = {"scatter": [index], "scatter_nd": [[index]], "scatter_along_axis": [[index] * 4]}
    build = lambda mb, a, b, c: getattr(mb, name)(data=a, indices=b, updates=c)  # noqa: E731
    with pytest.raises(HarnessError, match=rf"{name} '.*an index out of range: {index} to"):
        execute(build, DATA, np.int32(indices[name]), UPDATES[:1], target="iOS17")
