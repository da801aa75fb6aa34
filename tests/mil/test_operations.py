"""Operations, executed from packages that coremltools saved, against numpy."""

import math

import numpy as np
import pytest

from harness.errors import HarnessError
from tests.mil.programs import execute

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


SLOPES = np.float32([0.1, 0.5, 0.9])
CHANNEL = SLOPES[:, None, None]
IMAGE = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
BLOCKS = RNG.standard_normal((1, 8, 3, 2)).astype(np.float32)
KERNEL = RNG.standard_normal((3, 3, 2, 3)).astype(np.float32)


def normal(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def neighbours(x):
    """Sum over three neighbouring channels."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]


def convolve(x, kernel, strides):
    """Correlate x [N, C, H, W] with kernel [O, C, h, w], the sums written out."""
    high, wide = kernel.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, (high, wide), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, :: strides[0], :: strides[1]], kernel)


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
    "atan": np.arctan,
    "cosh": np.cosh,
    "exp2": np.exp2,
    "sinh": np.sinh,
    "tan": np.tan,
    "relu6": lambda x: np.clip(x, 0, 6),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
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
    "acos": (lambda mb, a: mb.acos(x=a), (np.tanh(X),), np.arccos(np.tanh(X))),
    "asin": (lambda mb, a: mb.asin(x=a), (np.tanh(X),), np.arcsin(np.tanh(X))),
    "atanh": (lambda mb, a: mb.atanh(x=a), (np.tanh(X),), np.arctanh(np.tanh(X))),
    "threshold": (lambda mb, a: mb.threshold(x=a, alpha=0.3), (X,), np.maximum(X, 0.3)),
    "elu": (
        lambda mb, a: mb.elu(x=a, alpha=0.7),
        (X,),
        np.where(X > 0, X, 0.7 * np.expm1(X)),
    ),
    "leaky_relu": (
        lambda mb, a: mb.leaky_relu(x=a, alpha=0.2),
        (X,),
        np.where(X > 0, X, 0.2 * X),
    ),
    "thresholded_relu": (
        lambda mb, a: mb.thresholded_relu(x=a, alpha=0.4),
        (X,),
        np.where(X >= 0.4, X, 0),
    ),
    "clamped_relu": (
        lambda mb, a: mb.clamped_relu(x=a, alpha=0.2, beta=0.9),
        (X,),
        np.minimum(np.where(X >= 0, X, 0.2 * X), 0.9),
    ),
    "linear_activation": (
        lambda mb, a: mb.linear_activation(x=a, alpha=2.0, beta=-1.0),
        (X,),
        2 * X - 1,
    ),
    "scaled_tanh": (
        lambda mb, a: mb.scaled_tanh(x=a, alpha=2.0, beta=0.5),
        (X,),
        2 * np.tanh(0.5 * X),
    ),
    "sigmoid_hard": (
        lambda mb, a: mb.sigmoid_hard(x=a, alpha=0.4, beta=0.3),
        (X,),
        np.clip(0.4 * X + 0.3, 0, 1),
    ),
    "prelu": (
        lambda mb, a: mb.prelu(x=a, alpha=SLOPES),
        (IMAGE,),
        np.where(IMAGE > 0, IMAGE, CHANNEL * IMAGE),
    ),
    "softplus_parametric": (
        lambda mb, a: mb.softplus_parametric(x=a, alpha=SLOPES, beta=2 * SLOPES),
        (X,),
        SLOPES[:, None] * np.log1p(np.exp(2 * SLOPES[:, None] * X)),
    ),
    "reduce_l1_norm": (
        lambda mb, a: mb.reduce_l1_norm(x=a, axes=[1]),
        (X,),
        np.abs(X).sum(1),
    ),
    "reduce_log_sum": (
        lambda mb, a: mb.reduce_log_sum(x=a, axes=[0, 2], keep_dims=True),
        (POSITIVE,),
        np.log(POSITIVE.sum((0, 2), keepdims=True)),
    ),
    "reduce_log_sum_exp": (
        lambda mb, a: mb.reduce_log_sum_exp(x=a, axes=[2]),
        (X,),
        np.log(np.exp(X).sum(2)),
    ),
    "reduce_prod": (
        lambda mb, a: mb.reduce_prod(x=a, axes=[0, -1]),
        (X,),
        X.prod((0, 2)),
    ),
    "cumsum": (lambda mb, a: mb.cumsum(x=a, axis=2), (X,), X.cumsum(2)),
    "cumsum exclusive backwards": (
        lambda mb, a: mb.cumsum(x=a, axis=1, exclusive=True, reverse=True),
        (X,),
        X[:, ::-1].cumsum(1)[:, ::-1] - X,
    ),
    "layer_norm": (
        lambda mb, a: mb.layer_norm(x=a, axes=[1, 2], gamma=X[0], beta=X[1], epsilon=1e-3),
        (X,),
        normal(X, (1, 2), 1e-3) * X[0] + X[1],
    ),
    "instance_norm": (
        lambda mb, a: mb.instance_norm(x=a, gamma=SLOPES, beta=-SLOPES, epsilon=1e-3),
        (IMAGE,),
        normal(IMAGE, (2, 3), 1e-3) * CHANNEL - CHANNEL,
    ),
    "batch_norm": (
        lambda mb, a: mb.batch_norm(
            x=a, mean=SLOPES, variance=SLOPES + 1, gamma=2 * SLOPES, beta=-SLOPES
        ),
        (IMAGE,),
        (IMAGE - CHANNEL) / np.sqrt(CHANNEL + 1 + 1e-5) * 2 * CHANNEL - CHANNEL,
    ),
    "l2_norm": (
        lambda mb, a: mb.l2_norm(x=a, epsilon=1e-3),
        (IMAGE,),
        IMAGE / np.sqrt((IMAGE**2).sum((1, 2, 3), keepdims=True) + 1e-3),
    ),
    "local_response_norm": (
        lambda mb, a: mb.local_response_norm(x=a, size=3, alpha=0.3, beta=0.5, k=2.0),
        (IMAGE,),
        IMAGE / np.sqrt(2 + 0.3 / 3 * neighbours(IMAGE**2)),
    ),
    "reverse": (lambda mb, a: mb.reverse(x=a, axes=[0, -1]), (X,), X[::-1, :, ::-1]),
    "reverse all": (lambda mb, a: mb.reverse(x=a), (X,), X[::-1, ::-1, ::-1]),
    "slice_by_size": (
        lambda mb, a: mb.slice_by_size(x=a, begin=[1, 0, 1], size=[1, -1, 2]),
        (X,),
        X[1:2, :, 1:3],
    ),
    "band_part": (
        lambda mb, a: mb.band_part(x=a, lower=1, upper=0),
        (X,),
        np.tril(np.triu(X, -1), 0),
    ),
    "band_part upper": (lambda mb, a: mb.band_part(x=a, lower=0), (X,), np.triu(X)),
    "pad": (
        lambda mb, a: mb.pad(x=a, pad=[1, 0, 2, 3], constant_val=7.0),
        (X,),
        np.pad(X, ((0, 0), (1, 0), (2, 3)), constant_values=7),
    ),
    "pad reflected": (
        lambda mb, a: mb.pad(x=a, pad=[0, 0, 1, 2, 2, 1], mode="reflect"),
        (X,),
        np.pad(X, ((0, 0), (1, 2), (2, 1)), mode="reflect"),
    ),
    "pad replicated": (
        lambda mb, a: mb.pad(x=a, pad=[2, 1], mode="replicate"),
        (X,),
        np.pad(X, ((0, 0), (0, 0), (2, 1)), mode="edge"),
    ),
    "one_hot": (
        lambda mb, a: mb.one_hot(
            indices=a, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=-1.0
        ),
        (np.array([3, 0], dtype=np.int32),),
        np.where(np.arange(4)[:, None] == np.array([3, 0]), 2.0, -1.0),
    ),
    "argsort": (
        lambda mb, a: mb.argsort(x=a, axis=1),
        (X,),
        np.argsort(-X, 1, kind="stable"),
    ),
    "argsort ascending": (
        lambda mb, a: mb.argsort(x=a, axis=-1, ascending=True),
        (X,),
        np.argsort(X, -1, kind="stable"),
    ),
    "gather_along_axis": (
        lambda mb, a, b: mb.gather_along_axis(x=a, indices=b, axis=2),
        (X, np.argsort(X, 2).astype(np.int32)),
        np.sort(X, 2),
    ),
    "flatten2d": (lambda mb, a: mb.flatten2d(x=a, axis=2), (X,), X.reshape(6, 4)),
    "pixel_shuffle": (
        lambda mb, a: mb.pixel_shuffle(x=a, upscale_factor=2),
        (BLOCKS,),
        BLOCKS.reshape(1, 2, 2, 2, 3, 2).transpose(0, 1, 4, 2, 5, 3).reshape(1, 2, 6, 4),
    ),
    "pixel_unshuffle": (
        lambda mb, a: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)),
        (BLOCKS[:, :, :2],),
        BLOCKS[:, :, :2].reshape(1, 8, 1, 2, 1, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 32, 1, 1),
    ),
    "conv": (
        lambda mb, a: mb.conv(
            x=a, weight=KERNEL, bias=SLOPES, strides=[2, 1], pad_type="custom", pad=[1, 0, 2, 1]
        ),
        (IMAGE,),
        convolve(np.pad(IMAGE, ((0, 0), (0, 0), (1, 0), (2, 1))), KERNEL, (2, 1)) + CHANNEL,
    ),
    "conv same": (
        lambda mb, a: mb.conv(x=a, weight=KERNEL, strides=[2, 2], pad_type="same"),
        (IMAGE,),
        convolve(np.pad(IMAGE, ((0, 0), (0, 0), (0, 1), (1, 1))), KERNEL, (2, 2)),
    ),
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
    "reduce_mean of no axes": (lambda mb, a: mb.reduce_mean(x=a, axes=np.int32([])), (X,), X),
    "reduce_sum_square of no axes": (
        lambda mb, a: mb.reduce_sum_square(x=a, axes=np.int32([])),
        (X,),
        X**2,
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


def test_topk_gives_values_and_places():
    values, places = execute(lambda mb, a: mb.topk(x=a, k=2, axis=1), X)
    expected = np.argsort(-X, 1, kind="stable")[:, :2]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(X, expected, 1))


def test_grouped_dilated_convolution_in_one_axis():
    x = RNG.standard_normal((1, 4, 9)).astype(np.float32)
    kernel = RNG.standard_normal((4, 2, 3)).astype(np.float32)
    (result,) = execute(
        lambda mb, a: mb.conv(x=a, weight=kernel, groups=2, dilations=[2], pad_type="valid"), x
    )
    expected = [
        sum(
            x[0, 2 * (out // 2) + c, place + 2 * tap] * kernel[out, c, tap]
            for c in range(2)
            for tap in range(3)
        )
        for out in range(4)
        for place in range(5)
    ]
    np.testing.assert_allclose(result.reshape(-1), expected, rtol=1e-5, atol=1e-5)


def test_shape_gives_the_sizes():
    build = lambda mb, a: mb.add(x=mb.shape(x=a), y=np.int32(1))  # noqa: E731
    (result,) = execute(build, X)
    assert result.tolist() == [3, 4, 5]
