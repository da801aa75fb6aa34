"""coremltools computes operations on constants itself: an independent judge of the rules."""

import numpy as np
import pytest
import torch

from harness.mil import get_policy, load_function
from tests.mil.programs import save

RNG = np.random.default_rng(9)
FLOATS = np.float32([[2.5, -2.5, 0.5, -0.5], [3.5, -7.25, 1e-3, -4.0]])
OTHERS = np.float32([[2.0, 2.0, -0.25, 3.0], [-1.5, 2.5, 7.0, -2.0]])
POSITIVE = np.abs(FLOATS) + 0.25
INTEGERS = np.int32([[7, -7, 8, -1], [-8, 3, 5, 0]])
DIVISORS = np.int32([[2, 2, -3, 5], [-3, 5, 4, -7]])
SMALL = np.int32([[2, 0, 1, 3], [1, 2, 3, 1]])
INDICES = np.int32([1, 0, 1])
INPUTS = (FLOATS, OTHERS, POSITIVE, INTEGERS, DIVISORS, SMALL)

F, O, P, I, D, S = range(6)  # noqa: E741 - the inputs' indices


def _of_two(names, x, y):
    return [(name, (x, y), {}) for name in names]


def _of_one(names, x, **parameters):
    return [(name, (x,), parameters) for name in names]


CASES = [
    *_of_two(["add", "sub", "mul", "real_div", "maximum", "minimum", "floor_div", "mod"], F, O),
    *_of_two(["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"], F, O),
    *_of_two(["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod"], I, D),
    *_of_two(["equal", "greater", "less_equal"], I, D),
    *_of_two(["pow"], P, O),
    *_of_two(["pow"], I, S),
    *_of_one(["abs", "sign", "square"], I),
    *_of_one(["abs", "ceil", "floor", "round", "sign", "square", "exp", "exp2", "erf"], F),
    *_of_one(["sin", "cos", "tan", "atan", "sinh", "cosh", "tanh", "relu"], F),
    *_of_one(["sqrt", "log"], P),
    *_of_one(["rsqrt", "inverse"], P, epsilon=0.125),
    *_of_one(["rsqrt", "inverse"], P),
    *_of_one(["clip"], F, alpha=-1.0, beta=0.75),
    *_of_one(["threshold"], F, alpha=0.25),
    *_of_one(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"], I, axes=[1]),
    *_of_one(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"], F),
    *_of_one(["reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square"], I, axes=[-1]),
    *_of_one(
        ["reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square"], F, axes=[0], keep_dims=True
    ),
    *_of_one(["reduce_log_sum_exp", "reduce_log_sum"], P, axes=[-2]),
    *_of_one(["reduce_sum", "reduce_mean"], F, keep_dims=True),
    *_of_one(["reduce_argmax", "reduce_argmin"], F, axis=-1),
    *_of_one(["reduce_argmax", "reduce_argmin"], I, axis=0, keep_dims=True),
    *_of_one(["softmax"], F, axis=-2),
    *_of_one(["transpose"], F, perm=[1, 0]),
    *_of_one(["reshape"], F, shape=[4, -1]),
    *_of_one(["expand_dims"], F, axes=[0, -1]),
    *_of_one(["tile"], I, reps=[2, 3]),
    *_of_one(["slice_by_index"], F, begin=[0, -1], end=[2, -4], stride=[1, -2]),
    *_of_one(["slice_by_index"], F, begin=[1, 0], end=[0, 3], squeeze_mask=[True, False]),
    *_of_one(["slice_by_index"], F, begin=[1, 1], end=[0, 0], end_mask=[True] * 2, stride=[-1, 2]),
    *_of_one(["slice_by_index"], F, begin=[0, 9], end=[9, 9], begin_mask=[False, True]),
    *_of_one(["slice_by_size"], F, begin=[0, 1], size=[-1, 2]),
    *_of_one(["gather"], F, indices=INDICES, axis=-2),
    *_of_one(["gather"], I, indices=INDICES.reshape(3, 1), axis=1),
    *_of_one(["reverse"], I, axes=[-1]),
    *_of_one(["flatten2d"], F, axis=-1),
    *_of_one(["cast"], F, dtype="int32"),
    *_of_one(["band_part"], F, lower=0, upper=1),
]


@pytest.fixture(scope="module")
def compared():
    """Return coremltools' result for constants and our executor's result, for each case."""
    expected = []

    def build(mb, *inputs):
        outputs = []
        for name, indices, parameters in CASES:
            make, keys = getattr(mb, name), "xy"
            constant = {key: INPUTS[index] for key, index in zip(keys, indices, strict=False)}
            expected.append(make(**constant, **parameters).val)
            given = {key: inputs[index] for key, index in zip(keys, indices, strict=False)}
            result = make(**given, **parameters)
            # Core ML has no bool at its boundary
            is_bool = "bool" in str(result.dtype)
            outputs.append(mb.cast(x=result, dtype="int32") if is_bool else result)
        return tuple(outputs)

    kinds = ["fp32"] * 3 + ["int32"] * 3
    package = save(build, [array.shape for array in INPUTS], dtypes=kinds)
    function = load_function(package, "main", get_policy("widen"))
    tensors = [torch.from_numpy(array) for array in INPUTS]
    results = list(function(dict(zip(function.inputs, tensors, strict=True))).values())
    return expected, [result.numpy() for result in results]


def test_every_case_was_computed_by_both(compared):
    expected, found = compared
    assert len(expected) == len(found) == len(CASES) > 80
    without = [CASES[number][0] for number, value in enumerate(expected) if value is None]
    assert without == [], "coremltools gives no value for these"


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_our_result_is_coremltools_own(compared, number):
    expected, found = (side[number] for side in compared)
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert (found.dtype.kind == "f") == (expected.dtype.kind == "f")
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, expected)
