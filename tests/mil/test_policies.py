"""Each policy rounds at the right operations, compared with numpy's own fp16 and fp32."""

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.mil import get_policy, load_function
from tests.mil.programs import execute, save

RNG = np.random.default_rng(21)
A, B = (RNG.standard_normal((8, 16)).astype(np.float16) * 8 for _ in range(2))
POSITIVE = np.abs(A) + np.float16(0.25)
WIDE_A, WIDE_B = A.astype(np.float32), B.astype(np.float32)

# the result of one operation: numpy's fp16 computes in fp32 and rounds once
ELEMENTWISE = {
    "add": (lambda mb, a, b: mb.add(x=a, y=b), np.add),
    "sub": (lambda mb, a, b: mb.sub(x=a, y=b), np.subtract),
    "mul": (lambda mb, a, b: mb.mul(x=a, y=b), np.multiply),
    "real_div": (lambda mb, a, b: mb.real_div(x=a, y=b), np.divide),
    "maximum": (lambda mb, a, b: mb.maximum(x=a, y=b), np.maximum),
    "square": (lambda mb, a, b: mb.square(x=a), lambda a, b: np.square(a)),
    "sqrt": (lambda mb, a, b: mb.sqrt(x=mb.abs(x=a)), lambda a, b: np.sqrt(np.abs(a))),
    "clip": (lambda mb, a, b: mb.clip(x=a, alpha=-1.0, beta=2.0), lambda a, b: np.clip(a, -1, 2)),
    "two roundings": (
        lambda mb, a, b: mb.add(x=mb.mul(x=a, y=b), y=a),
        lambda a, b: np.add(np.multiply(a, b), a),
    ),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_strict_rounds_as_numpys_fp16_does(name):
    build, rule = ELEMENTWISE[name]
    build = _with_half_parameters(build)
    (result,) = execute(build, A, B, policy="strict")
    expected = rule(A, B)
    assert expected.dtype == np.float16
    np.testing.assert_array_equal(result, expected.astype(np.float32))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_widen_rounds_nothing(name):
    build, rule = ELEMENTWISE[name]
    (result,) = execute(_with_half_parameters(build), A, B, policy="widen")
    expected = rule(WIDE_A, WIDE_B)
    np.testing.assert_allclose(result, expected, rtol=2.4e-7)  # 2 ULP: torch's sqrt
    if name not in ("maximum", "clip"):
        assert (result != expected.astype(np.float16).astype(np.float32)).any()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_double_computes_in_fp64(name):
    build, rule = ELEMENTWISE[name]
    (result,) = execute(_with_half_parameters(build), A, B, policy="double")
    assert result.dtype == np.float64
    expected = rule(A.astype(np.float64), B.astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=4.5e-16)


def _with_half_parameters(build):
    """Build an operation with FLOAT16 parameters, as a FLOAT16 operation has."""

    class Half:
        def __init__(self, mb):
            self._mb = mb

        def __getattr__(self, name):
            def make(**given):
                return getattr(self._mb, name)(
                    **{k: np.float16(v) if isinstance(v, float) else v for k, v in given.items()}
                )

            return make

    return lambda mb, *inputs: build(Half(mb), *inputs)


def test_strict_rounds_its_inputs():
    function = load_function(
        save(lambda mb, a: mb.identity(x=a), [(1,)], dtype="fp16"), "main", get_policy("strict")
    )
    (result,) = function({"a": torch.tensor([1 + 2**-12 + 2**-20])}).values()
    assert result.item() == np.float16(1 + 2**-12 + 2**-20)


LONG = np.full((1, 4096), 1.0, np.float16)
LONG[0, 0] = 2048  # fp16 has no 2049: a sum that is rounded at every step stays at 2048
REDUCTIONS = {
    "reduce_sum": (lambda mb, a: mb.reduce_sum(x=a, axes=[1]), 2048 + 4095),
    "reduce_mean": (lambda mb, a: mb.reduce_mean(x=a, axes=[1]), (2048 + 4095) / 4096),
    "reduce_l1_norm": (lambda mb, a: mb.reduce_l1_norm(x=a, axes=[1]), 2048 + 4095),
    "reduce_l2_norm": (lambda mb, a: mb.reduce_l2_norm(x=a, axes=[1]), (2048**2 + 4095) ** 0.5),
    "matmul": (lambda mb, a: mb.matmul(x=a, y=np.ones((4096, 1), np.float16)), 2048 + 4095),
    "linear": (lambda mb, a: mb.linear(x=a, weight=np.ones((1, 4096), np.float16)), 2048 + 4095),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_strict_accumulates_in_fp32_and_rounds_once(name):
    build, exact = REDUCTIONS[name]
    (result,) = execute(build, LONG, policy="strict")
    assert result.reshape(()) == np.float16(exact)
    (wide,) = execute(build, LONG, policy="widen")
    np.testing.assert_allclose(wide.reshape(()), exact, rtol=1e-6)


def test_strict_predicts_a_square_that_overflows_before_the_mean():
    """The exported RMSNorm zeroes the block, and every result is finite."""
    x = np.full((1, 4), 300, np.float16)

    def build(mb, a):
        mean = mb.reduce_mean(x=mb.mul(x=a, y=a), axes=[1], keep_dims=True)
        return mb.mul(x=a, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-5)))

    assert execute(build, x, policy="strict")[0].tolist() == [[0, 0, 0, 0]]
    np.testing.assert_allclose(execute(build, x, policy="widen")[0], 1, rtol=1e-6)


def test_a_reduction_that_overflows_at_its_end_is_infinite_in_strict_only():
    x = np.full((1, 4), 40000, np.float16)
    build = lambda mb, a: mb.reduce_sum(x=a, axes=[1])  # noqa: E731
    assert execute(build, x, policy="strict")[0] == np.inf
    assert execute(build, x, policy="widen")[0] == 160000


@pytest.mark.parametrize("policy", ["strict", "widen", "double"])
def test_moving_data_changes_no_value(policy):
    def build(mb, a):
        first, second = mb.split(x=mb.transpose(x=a, perm=[1, 0]), num_splits=2, axis=0)
        joined = mb.concat(values=[second, first], axis=0)
        return mb.slice_by_index(
            x=joined, begin=[15, 0], end=[0, 8], stride=[-1, 1], end_mask=[True, False]
        )

    (result,) = execute(build, A, policy=policy)
    turned = A.T
    np.testing.assert_array_equal(result, np.concatenate([turned[8:], turned[:8]])[::-1])


@pytest.mark.parametrize("policy", ["strict", "widen", "double"])
def test_integers_are_exact(policy):
    x = np.int32([[2**24 + 1, -(2**24) - 1]])
    (result,) = execute(lambda mb, a: mb.add(x=a, y=a), x, policy=policy)
    assert result.tolist() == [[2**25 + 2, -(2**25) - 2]]


@pytest.mark.parametrize("policy", ["strict", "widen"])
def test_a_cast_to_fp16_rounds_in_strict_only(policy):
    build = lambda mb, a: mb.cast(x=mb.cast(x=a, dtype="fp16"), dtype="fp32")  # noqa: E731
    (result,) = execute(build, np.float32([1e6, 1.0001]), policy=policy)
    assert result.tolist() == (
        [np.inf, 1] if policy == "strict" else np.float32([1e6, 1.0001]).tolist()
    )


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18"])
def test_every_opset_is_executed(target):
    def build(mb, a):
        picked = mb.gather(x=a, indices=np.int32([1, 0]), axis=0)
        return mb.softmax(x=mb.reshape(x=picked, shape=[4, 2]), axis=-1)

    x = np.float32([[1, 2, 3, 4], [0, 0, 1, -1]])
    (result,) = execute(build, x, target=target)
    picked = np.exp(x[::-1].reshape(4, 2))
    np.testing.assert_allclose(result, picked / picked.sum(1, keepdims=True), rtol=1e-6)


def test_a_converted_network_is_what_numpy_computes(tmp_path):
    """coremltools' default passes fuse, cast to FLOAT16 and fold constants, as in real programs."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    from harness.artifact import Package

    weight = RNG.standard_normal((32, 16)).astype(np.float32) / 4
    bias = RNG.standard_normal(32).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec((8, 16))], opset_version=ct.target.iOS18)
    def main(a):
        hidden = mb.silu(x=mb.linear(x=a, weight=weight, bias=bias))
        mean = mb.reduce_mean(x=mb.mul(x=hidden, y=hidden), axes=[-1], keep_dims=True)
        return mb.mul(x=hidden, y=mb.rsqrt(x=mean, epsilon=1e-5), name="out")

    model = ct.convert(
        main,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "network.mlpackage"))
    package = Package.from_folder(tmp_path / "network.mlpackage")
    kinds = {op.type for op in package.operations("main").operations}
    assert "cast" in kinds, "nothing was converted to FLOAT16"
    halves = weight.astype(np.float16).astype(np.float64), bias.astype(np.float16)
    hidden = WIDE_A.astype(np.float64) @ halves[0].T + halves[1]
    hidden = hidden / (1 + np.exp(-hidden))
    expected = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5)
    for policy, bound in (("double", 1e-12), ("widen", 1e-6), ("strict", 4e-3)):
        function = load_function(package, "main", get_policy(policy))
        (result,) = function({"a": torch.from_numpy(WIDE_A)}).values()
        error = np.abs(result.numpy() - expected).max() / np.abs(expected).max()
        assert error < bound, policy
        assert policy != "strict" or error > 1e-5, "strict has rounded nothing"


def test_a_float_is_not_taken_for_an_integer():
    function = load_function(
        save(lambda mb, a: mb.add(x=a, y=a), [(2,)], dtype="int32"), "main", get_policy("widen")
    )
    with pytest.raises(HarnessError, match=r"input 'a' is torch.float32, not the declared INT32"):
        function({"a": torch.tensor([1.5, 2])})
    assert function({"a": torch.tensor([1, 2], dtype=torch.int64)}).popitem()[1].tolist() == [2, 4]
