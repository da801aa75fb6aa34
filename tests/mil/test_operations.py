"""Operations, executed from packages that coremltools saved, against numpy."""

import math

import numpy as np
import pytest

from tests.mil.programs import execute
from tests.mil.rows import Row, each

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((3, 1)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
ABOVE = np.array([np.inf, np.finfo(np.float32).max, 1e30, 20.0] * 8, dtype=np.float32)
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
TOP = np.argsort(-X, 1, kind="stable")[:, :2]
ROWS = [
    *(Row(name, {"x": X, "y": Y}, rule(X, Y)) for name, rule in BINARY.items()),
    *(Row(name, {"x": X}, rule(X)) for name, rule in UNARY.items()),
    Row("acos", {"x": np.tanh(X)}, np.arccos(np.tanh(X))),
    Row("asin", {"x": np.tanh(X)}, np.arcsin(np.tanh(X))),
    Row("atanh", {"x": np.tanh(X)}, np.arctanh(np.tanh(X))),
    Row("threshold", {"x": X}, np.maximum(X, 0.3), alpha=0.3),
    Row("elu", {"x": X}, np.where(X > 0, X, 0.7 * np.expm1(X)), alpha=0.7),
    Row("leaky_relu", {"x": X}, np.where(X > 0, X, 0.2 * X), alpha=0.2),
    Row("thresholded_relu", {"x": X}, np.where(X >= 0.4, X, 0), alpha=0.4),
    Row(
        "clamped_relu", {"x": X}, np.minimum(np.where(X >= 0, X, 0.2 * X), 0.9), alpha=0.2, beta=0.9
    ),
    Row("linear_activation", {"x": X}, 2 * X - 1, alpha=2.0, beta=-1.0),
    Row("scaled_tanh", {"x": X}, 2 * np.tanh(0.5 * X), alpha=2.0, beta=0.5),
    Row("sigmoid_hard", {"x": X}, np.clip(0.4 * X + 0.3, 0, 1), alpha=0.4, beta=0.3),
    Row("prelu", {"x": IMAGE}, np.where(IMAGE > 0, IMAGE, CHANNEL * IMAGE), alpha=SLOPES),
    Row(
        "softplus_parametric",
        {"x": X},
        SLOPES[:, None] * np.log1p(np.exp(2 * SLOPES[:, None] * X)),
        alpha=SLOPES,
        beta=2 * SLOPES,
    ),
    Row("reduce_l1_norm", {"x": X}, np.abs(X).sum(1), axes=[1]),
    Row(
        "reduce_log_sum",
        {"x": POSITIVE},
        np.log(POSITIVE.sum((0, 2), keepdims=True)),
        axes=[0, 2],
        keep_dims=True,
    ),
    Row("reduce_log_sum_exp", {"x": X}, np.log(np.exp(X).sum(2)), axes=[2]),
    Row("reduce_prod", {"x": X}, X.prod((0, 2)), axes=[0, -1]),
    Row("cumsum", {"x": X}, X.cumsum(2), axis=2),
    Row(
        "cumsum",
        {"x": X},
        X[:, ::-1].cumsum(1)[:, ::-1] - X,
        note="exclusive backwards",
        axis=1,
        exclusive=True,
        reverse=True,
    ),
    Row(
        "layer_norm",
        {"x": X},
        normal(X, (1, 2), 1e-3) * X[0] + X[1],
        axes=[1, 2],
        gamma=X[0],
        beta=X[1],
        epsilon=1e-3,
    ),
    Row(
        "instance_norm",
        {"x": IMAGE},
        normal(IMAGE, (2, 3), 1e-3) * CHANNEL - CHANNEL,
        gamma=SLOPES,
        beta=-SLOPES,
        epsilon=1e-3,
    ),
    Row(
        "batch_norm",
        {"x": IMAGE},
        (IMAGE - CHANNEL) / np.sqrt(CHANNEL + 1 + 1e-5) * 2 * CHANNEL - CHANNEL,
        mean=SLOPES,
        variance=SLOPES + 1,
        gamma=2 * SLOPES,
        beta=-SLOPES,
    ),
    Row(
        "l2_norm",
        {"x": IMAGE},
        IMAGE / np.sqrt((IMAGE**2).sum((1, 2, 3), keepdims=True) + 1e-3),
        epsilon=1e-3,
    ),
    Row(
        "local_response_norm",
        {"x": IMAGE},
        IMAGE / np.sqrt(2 + 0.3 / 3 * neighbours(IMAGE**2)),
        size=3,
        alpha=0.3,
        beta=0.5,
        k=2.0,
    ),
    Row("reverse", {"x": X}, X[::-1, :, ::-1], axes=[0, -1]),
    Row("reverse", {"x": X}, X[::-1, ::-1, ::-1], note="all"),
    Row("slice_by_size", {"x": X}, X[1:2, :, 1:3], begin=[1, 0, 1], size=[1, -1, 2]),
    Row("band_part", {"x": X}, np.tril(np.triu(X, -1), 0), lower=1, upper=0),
    Row("band_part", {"x": X}, np.triu(X), note="upper", lower=0),
    Row(
        "pad",
        {"x": X},
        np.pad(X, ((0, 0), (1, 0), (2, 3)), constant_values=7),
        pad=[1, 0, 2, 3],
        constant_val=7.0,
    ),
    Row(
        "pad",
        {"x": X},
        np.pad(X, ((0, 0), (1, 2), (2, 1)), mode="reflect"),
        note="reflected",
        pad=[0, 0, 1, 2, 2, 1],
        mode="reflect",
    ),
    Row(
        "pad",
        {"x": X},
        np.pad(X, ((0, 0), (0, 0), (2, 1)), mode="edge"),
        note="replicated",
        pad=[2, 1],
        mode="replicate",
    ),
    Row(
        "one_hot",
        {"indices": np.array([3, 0], dtype=np.int32)},
        np.where(np.arange(4)[:, None] == np.array([3, 0]), 2.0, -1.0),
        one_hot_vector_size=4,
        axis=0,
        on_value=2.0,
        off_value=-1.0,
    ),
    Row("argsort", {"x": X}, np.argsort(-X, 1, kind="stable"), axis=1),
    Row(
        "argsort",
        {"x": X},
        np.argsort(X, -1, kind="stable"),
        note="ascending",
        axis=-1,
        ascending=True,
    ),
    Row(
        "gather_along_axis",
        {"x": X, "indices": np.argsort(X, 2).astype(np.int32)},
        np.sort(X, 2),
        axis=2,
    ),
    Row("flatten2d", {"x": X}, X.reshape(6, 4), axis=2),
    Row(
        "pixel_shuffle",
        {"x": BLOCKS},
        BLOCKS.reshape(1, 2, 2, 2, 3, 2).transpose(0, 1, 4, 2, 5, 3).reshape(1, 2, 6, 4),
        upscale_factor=2,
    ),
    Row(
        "pixel_unshuffle",
        {"x": BLOCKS[:, :, :2]},
        BLOCKS[:, :, :2].reshape(1, 8, 1, 2, 1, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 32, 1, 1),
        downscale_factor=np.uint32(2),
    ),
    Row(
        "conv",
        {"x": IMAGE},
        convolve(np.pad(IMAGE, ((0, 0), (0, 0), (1, 0), (2, 1))), KERNEL, (2, 1)) + CHANNEL,
        weight=KERNEL,
        bias=SLOPES,
        strides=[2, 1],
        pad_type="custom",
        pad=[1, 0, 2, 1],
    ),
    Row(
        "conv",
        {"x": IMAGE},
        convolve(np.pad(IMAGE, ((0, 0), (0, 0), (0, 1), (1, 1))), KERNEL, (2, 2)),
        note="same",
        weight=KERNEL,
        strides=[2, 2],
        pad_type="same",
    ),
    Row("pow", {"x": POSITIVE, "y": Y}, np.power(POSITIVE, Y)),
    Row("sqrt", {"x": POSITIVE}, np.sqrt(POSITIVE)),
    Row("rsqrt", {"x": POSITIVE}, (POSITIVE + 0.5) ** -0.5, epsilon=0.5),
    Row("inverse", {"x": POSITIVE}, 1 / (POSITIVE + 1e-4)),
    Row("log", {"x": POSITIVE}, np.log(POSITIVE)),
    Row("clip", {"x": X}, np.clip(X, -0.5, 0.75), alpha=-0.5, beta=0.75),
    Row("logical_and", {"x": BOOLS, "y": ~BOOLS}, BOOLS & ~BOOLS),
    Row("logical_or", {"x": BOOLS, "y": ~BOOLS}, BOOLS | ~BOOLS),
    Row("logical_xor", {"x": BOOLS, "y": BOOLS}, BOOLS ^ BOOLS),
    Row("logical_not", {"x": BOOLS}, ~BOOLS),
    Row("select", {"cond": BOOLS, "a": X, "b": -X}, np.where(BOOLS, X, -X)),
    Row("gelu", {"x": X}, 0.5 * X * (1 + erf(X / math.sqrt(2))), mode="EXACT"),
    Row("gelu", {"x": ABOVE}, ABOVE, note="of the largest numbers", mode="EXACT"),
    Row(
        "gelu",
        {"x": X},
        0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
        note="tanh",
        mode="TANH_APPROXIMATION",
    ),
    Row("gelu", {"x": X}, X * sigmoid(1.702 * X), note="sigmoid", mode="SIGMOID_APPROXIMATION"),
    Row("floor_div", {"x": INTEGERS, "y": DIVISORS}, INTEGERS // DIVISORS, note="of integers"),
    Row("mod", {"x": INTEGERS, "y": DIVISORS}, INTEGERS % DIVISORS, note="of integers"),
    Row("identity", {"x": X}, X),
    Row("reshape", {"x": X}, X.reshape(4, 6), shape=[4, -1]),
    Row("reshape", {"x": X}, X.reshape(2, 4, 3), note="keeps", shape=[0, 4, 3]),
    Row("transpose", {"x": X}, X.transpose(2, 0, 1), perm=[2, 0, 1]),
    Row("expand_dims", {"x": X}, X[None, ..., None], axes=[0, -1]),
    Row("squeeze", {"x": Y}, Y[:, 0], axes=[-1]),
    Row("squeeze", {"x": Y[None]}, Y[:, 0], note="all"),
    Row(
        "concat",
        {"a": X, "b": X[..., :2]},
        np.concatenate([X, X[..., :2]], -1),
        build=lambda mb, a, b: mb.concat(values=[a, b], axis=-1),
    ),
    Row(
        "concat",
        {"a": X, "b": -X},
        np.stack([X, -X], 2).reshape(2, 6, 4),
        note="interleaved",
        build=lambda mb, a, b: mb.concat(values=[a, b], axis=1, interleave=True),
    ),
    Row(
        "stack",
        {"a": X, "b": -X},
        np.stack([X, -X], 1),
        build=lambda mb, a, b: mb.stack(values=[a, b], axis=1),
    ),
    Row("tile", {"x": X}, np.tile(X, (1, 2, 3)), reps=[1, 2, 3]),
    Row(
        "slice_by_index",
        {"x": X},
        X[1:2, 0:3:2, -3:],
        begin=[1, 0, -3],
        end=[2, 3, 0],
        stride=[1, 2, 1],
        end_mask=[False, False, True],
    ),
    Row(
        "slice_by_index",
        {"x": X},
        X[:2, 2, 0:3],
        note="squeezed",
        begin=[1, 2, 0],
        end=[2, 0, 3],
        squeeze_mask=[False, True, False],
        begin_mask=[True, False, False],
    ),
    Row(
        "slice_by_index",
        {"x": X},
        X[0, 2:0:-1, 3::-2],
        note="backwards",
        begin=[0, 2, 3],
        end=[1, 0, 0],
        stride=[1, -1, -2],
        squeeze_mask=[True, False, False],
        end_mask=[False, False, True],
    ),
    Row("gather", {"x": X}, np.take(X, [[2, 0], [1, 1]], 1), indices=[[2, 0], [1, 1]], axis=1),
    Row("linear", {"x": X}, X @ X[0].T + Y[:, 0], weight=X[0], bias=Y[:, 0]),
    Row("matmul", {"x": X, "y": X}, X @ X.transpose(0, 2, 1), transpose_y=True),
    Row("matmul", {"x": X, "y": X}, X.transpose(0, 2, 1) @ X, note="transposed", transpose_x=True),
    Row("reduce_mean", {"x": X}, X.mean((0, 2), keepdims=True), axes=[-1, 0], keep_dims=True),
    Row("reduce_mean", {"x": X}, X, note="of no axes", axes=np.int32([])),
    Row("reduce_sum_square", {"x": X}, X**2, note="of no axes", axes=np.int32([])),
    Row("reduce_sum", {"x": X}, X.sum(1), axes=[1]),
    Row("reduce_sum", {"x": INTEGERS}, INTEGERS.sum(0), note="of integers", axes=[0]),
    Row("reduce_max", {"x": X}, X.max((1, 2)), axes=[1, 2]),
    Row("reduce_min", {"x": X}, X.min(0), axes=[0]),
    Row("reduce_sum_square", {"x": X}, (X**2).sum(2), axes=[2]),
    Row("reduce_l2_norm", {"x": X}, np.sqrt((X**2).sum(2)), axes=[2]),
    Row("reduce_argmax", {"x": X}, X.argmax(1), axis=1),
    Row("reduce_argmin", {"x": X}, X.argmin(-1)[..., None], axis=-1, keep_dims=True),
    Row("softmax", {"x": X}, softmax(X, 1), axis=-2),
    Row("split", {"x": X}, (X[..., :2], X[..., 2:]), num_splits=2, axis=2),
    Row(
        "split",
        {"x": X},
        (X[..., :1], X[..., 1:]),
        note="by sizes",
        split_sizes=[1, 3],
        axis=-1,
    ),
    Row("topk", {"x": X}, (np.take_along_axis(X, TOP, 1), TOP), k=2, axis=1),
    Row("cast", {"x": np.float32([1.9, -1.9, 0.5])}, [1, -1, 0], note="truncates", dtype="int32"),
    *(
        Row(
            "cast",
            {"x": np.int32([49152, -1, 0, 3])},  # a vocabulary of 49,152 does not fit int16
            wrapped,
            note=f"to {dtype} wraps around",
            build=lambda mb, a, dtype=dtype: mb.cast(x=mb.cast(x=a, dtype=dtype), dtype="int32"),
        )
        for dtype, wrapped in {
            "int16": [-16384, -1, 0, 3],
            "uint16": [49152, 65535, 0, 3],
            "int8": [0, -1, 0, 3],
            "uint8": [0, 255, 0, 3],
        }.items()
    ),
    Row(
        "gather",
        {"indices": np.int32([-1])},
        X[:, [-1]],
        note="from the end, up to iOS 16",
        target="iOS16",
        x=X,
        axis=1,
    ),
    Row(
        "gather",
        {"indices": np.int32([-1])},
        note="from the end, from iOS 17 on",
        error="out of",
        target="iOS17",
        x=X,
        axis=1,
    ),
    Row(
        "shape",
        {"x": X},
        [3, 4, 5],
        build=lambda mb, a: mb.add(x=mb.shape(x=a), y=np.int32(1)),
    ),
]


@each(ROWS)
def test_an_operation_gives_what_numpy_gives(row):
    row.check(2e-6)


@pytest.mark.executes("conv")
def test_grouped_dilated_convolution_in_one_axis():
    x = RNG.standard_normal((1, 4, 9)).astype(np.float32)
    kernel = RNG.standard_normal((4, 2, 3)).astype(np.float32)
    (result,) = execute(
        lambda mb, a: mb.conv(x=a, weight=kernel, groups=2, dilations=[2], pad_type="valid"), x
    )
    expected = [
        sum(
            x[0, 2 * (out // 2) + c, start + 2 * tap] * kernel[out, c, tap]
            for c in range(2)
            for tap in range(3)
        )
        for out in range(4)
        for start in range(5)
    ]
    np.testing.assert_allclose(result.reshape(-1), expected, rtol=1e-5, atol=1e-5)
