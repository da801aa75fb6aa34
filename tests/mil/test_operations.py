"""Every implemented operation, executed from a package that coremltools saved, against numpy."""

import math

import numpy as np
import pytest
from programs import execute

from harness.errors import HarnessError
from harness.mil.operation import IMPLEMENTATIONS

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((3, 1)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
INTEGERS = np.array([[7, -7, 8], [-8, 3, 5]], dtype=np.int32)
DIVISORS = np.array([[2, 2, -3], [-3, 5, 4]], dtype=np.int32)
BOOLS = X > 0
erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    shifted = np.exp(x - x.max(axis, keepdims=True))
    return shifted / shifted.sum(axis, keepdims=True)


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "floor_div": np.floor_divide,
    "mod": np.mod,
}
UNARY = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": erf,
    "exp": np.exp,
    "floor": np.floor,
    "relu": lambda x: np.maximum(x, 0),
    "round": np.round,
    "sigmoid": sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * sigmoid(x),
    "sin": np.sin,
    "square": np.square,
    "tanh": np.tanh,
}
CASES = {
    **{
        name: (lambda mb, a, b, name=name: getattr(mb, name)(x=a, y=b), (X, Y), rule(X, Y))
        for name, rule in BINARY.items()
    },
    **{
        name: (lambda mb, a, name=name: getattr(mb, name)(x=a), (X,), rule(X))
        for name, rule in UNARY.items()
    },
    "pow": (lambda mb, a, b: mb.pow(x=a, y=b), (POSITIVE, Y), np.power(POSITIVE, Y)),
    "sqrt": (lambda mb, a: mb.sqrt(x=a), (POSITIVE,), np.sqrt(POSITIVE)),
    "rsqrt": (lambda mb, a: mb.rsqrt(x=a, epsilon=0.5), (POSITIVE,), (POSITIVE + 0.5) ** -0.5),
    "inverse": (lambda mb, a: mb.inverse(x=a), (POSITIVE,), 1 / (POSITIVE + 1e-4)),
    "log": (lambda mb, a: mb.log(x=a), (POSITIVE,), np.log(POSITIVE)),
    "clip": (lambda mb, a: mb.clip(x=a, alpha=-0.5, beta=0.75), (X,), np.clip(X, -0.5, 0.75)),
    "logical_and": (lambda mb, a, b: mb.logical_and(x=a, y=b), (BOOLS, ~BOOLS), BOOLS & ~BOOLS),
    "logical_or": (lambda mb, a, b: mb.logical_or(x=a, y=b), (BOOLS, ~BOOLS), BOOLS | ~BOOLS),
    "logical_xor": (lambda mb, a, b: mb.logical_xor(x=a, y=b), (BOOLS, BOOLS), BOOLS ^ BOOLS),
    "logical_not": (lambda mb, a: mb.logical_not(x=a), (BOOLS,), ~BOOLS),
    "select": (
        lambda mb, a, b, c: mb.select(cond=a, a=b, b=c),
        (BOOLS, X, -X),
        np.where(BOOLS, X, -X),
    ),
    "gelu": (
        lambda mb, a: mb.gelu(x=a, mode="EXACT"),
        (X,),
        0.5 * X * (1 + erf(X / math.sqrt(2))),
    ),
    "gelu tanh": (
        lambda mb, a: mb.gelu(x=a, mode="TANH_APPROXIMATION"),
        (X,),
        0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    ),
    "gelu sigmoid": (
        lambda mb, a: mb.gelu(x=a, mode="SIGMOID_APPROXIMATION"),
        (X,),
        X * sigmoid(1.702 * X),
    ),
    "floor_div of integers": (
        lambda mb, a, b: mb.floor_div(x=a, y=b),
        (INTEGERS, DIVISORS),
        INTEGERS // DIVISORS,
    ),
    "mod of integers": (
        lambda mb, a, b: mb.mod(x=a, y=b),
        (INTEGERS, DIVISORS),
        INTEGERS % DIVISORS,
    ),
    "identity": (lambda mb, a: mb.identity(x=a), (X,), X),
    "reshape": (lambda mb, a: mb.reshape(x=a, shape=[4, -1]), (X,), X.reshape(4, 6)),
    "reshape keeps": (lambda mb, a: mb.reshape(x=a, shape=[0, 4, 3]), (X,), X.reshape(2, 4, 3)),
    "transpose": (lambda mb, a: mb.transpose(x=a, perm=[2, 0, 1]), (X,), X.transpose(2, 0, 1)),
    "expand_dims": (
        lambda mb, a: mb.expand_dims(x=a, axes=[0, -1]),
        (X,),
        X[None, ..., None],
    ),
    "squeeze": (lambda mb, a: mb.squeeze(x=a, axes=[-1]), (Y,), Y[:, 0]),
    "squeeze all": (lambda mb, a: mb.squeeze(x=a), (Y[None],), Y[:, 0]),
    "concat": (
        lambda mb, a, b: mb.concat(values=[a, b], axis=-1),
        (X, X[..., :2]),
        np.concatenate([X, X[..., :2]], -1),
    ),
    "concat interleaved": (
        lambda mb, a, b: mb.concat(values=[a, b], axis=1, interleave=True),
        (X, -X),
        np.stack([X, -X], 2).reshape(2, 6, 4),
    ),
    "stack": (lambda mb, a, b: mb.stack(values=[a, b], axis=1), (X, -X), np.stack([X, -X], 1)),
    "tile": (lambda mb, a: mb.tile(x=a, reps=[1, 2, 3]), (X,), np.tile(X, (1, 2, 3))),
    "slice_by_index": (
        lambda mb, a: mb.slice_by_index(
            x=a,
            begin=[1, 0, -3],
            end=[2, 3, 0],
            stride=[1, 2, 1],
            end_mask=[False, False, True],
        ),
        (X,),
        X[1:2, 0:3:2, -3:],
    ),
    "slice_by_index squeezed": (
        lambda mb, a: mb.slice_by_index(
            x=a,
            begin=[1, 2, 0],
            end=[2, 0, 3],
            squeeze_mask=[False, True, False],
            begin_mask=[True, False, False],
        ),
        (X,),
        X[:2, 2, 0:3],
    ),
    "slice_by_index backwards": (
        lambda mb, a: mb.slice_by_index(
            x=a,
            begin=[0, 2, 3],
            end=[1, 0, 0],
            stride=[1, -1, -2],
            squeeze_mask=[True, False, False],
            end_mask=[False, False, True],
        ),
        (X,),
        X[0, 2:0:-1, 3::-2],
    ),
    "gather": (
        lambda mb, a: mb.gather(x=a, indices=[[2, 0], [1, 1]], axis=1),
        (X,),
        np.take(X, [[2, 0], [1, 1]], 1),
    ),
    "linear": (
        lambda mb, a: mb.linear(x=a, weight=X[0], bias=Y[:, 0]),
        (X,),
        X @ X[0].T + Y[:, 0],
    ),
    "matmul": (
        lambda mb, a, b: mb.matmul(x=a, y=b, transpose_y=True),
        (X, X),
        X @ X.transpose(0, 2, 1),
    ),
    "matmul transposed": (
        lambda mb, a, b: mb.matmul(x=a, y=b, transpose_x=True),
        (X, X),
        X.transpose(0, 2, 1) @ X,
    ),
    "reduce_mean": (
        lambda mb, a: mb.reduce_mean(x=a, axes=[-1, 0], keep_dims=True),
        (X,),
        X.mean((0, 2), keepdims=True),
    ),
    "reduce_sum": (lambda mb, a: mb.reduce_sum(x=a, axes=[1]), (X,), X.sum(1)),
    "reduce_sum of integers": (
        lambda mb, a: mb.reduce_sum(x=a, axes=[0]),
        (INTEGERS,),
        INTEGERS.sum(0),
    ),
    "reduce_max": (lambda mb, a: mb.reduce_max(x=a, axes=[1, 2]), (X,), X.max((1, 2))),
    "reduce_min": (lambda mb, a: mb.reduce_min(x=a, axes=[0]), (X,), X.min(0)),
    "reduce_sum_square": (
        lambda mb, a: mb.reduce_sum_square(x=a, axes=[2]),
        (X,),
        (X**2).sum(2),
    ),
    "reduce_l2_norm": (
        lambda mb, a: mb.reduce_l2_norm(x=a, axes=[2]),
        (X,),
        np.sqrt((X**2).sum(2)),
    ),
    "reduce_argmax": (lambda mb, a: mb.reduce_argmax(x=a, axis=1), (X,), X.argmax(1)),
    "reduce_argmin": (
        lambda mb, a: mb.reduce_argmin(x=a, axis=-1, keep_dims=True),
        (X,),
        X.argmin(-1)[..., None],
    ),
    "softmax": (lambda mb, a: mb.softmax(x=a, axis=-2), (X,), softmax(X, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_numpy_gives(name):
    build, inputs, expected = CASES[name]
    (result,) = execute(build, *inputs)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


def test_split_by_count_and_by_sizes():
    halves = execute(lambda mb, a: tuple(mb.split(x=a, num_splits=2, axis=2)), X)
    parts = execute(lambda mb, a: tuple(mb.split(x=a, split_sizes=[1, 3], axis=-1)), X)
    for have, want in zip(
        halves + parts, (X[..., :2], X[..., 2:], X[..., :1], X[..., 1:]), strict=True
    ):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("int16", [-16384, -1, 0, 3]),
        ("uint16", [49152, 65535, 0, 3]),
        ("int8", [0, -1, 0, 3]),
        ("uint8", [0, 255, 0, 3]),
    ],
)
def test_a_cast_to_a_small_integer_wraps_around(dtype, expected):
    """A vocabulary of 49,152 does not fit int16."""
    tokens = np.array([49152, -1, 0, 3], dtype=np.int32)
    (result,) = execute(lambda mb, a: mb.cast(x=mb.cast(x=a, dtype=dtype), dtype="int32"), tokens)
    assert result.tolist() == expected


def test_a_cast_truncates_toward_zero():
    (result,) = execute(lambda mb, a: mb.cast(x=a, dtype="int32"), np.float32([1.9, -1.9, 0.5]))
    assert result.tolist() == [1, -1, 0]


def test_a_negative_index_is_out_of_range_from_ios_17_on():
    build = lambda mb, a: mb.gather(x=X, indices=a, axis=1)  # noqa: E731
    index = np.array([-1], dtype=np.int32)
    (result,) = execute(build, index, target="iOS16")
    np.testing.assert_array_equal(result, X[:, [-1]])
    with pytest.raises(HarnessError, match=r"gather '.*out of"):
        execute(build, index, target="iOS17")


def test_every_implementation_is_tested_here():
    tested = {name.split(" ")[0] for name in CASES}
    elsewhere = {"cast", "split", "constexpr_blockwise_shift_scale"}
    assert set(IMPLEMENTATIONS) == tested | elsewhere
