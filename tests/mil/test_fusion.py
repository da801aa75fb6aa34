"""A fused plan gives the values of the plan that it replaces, to the last bit, in fewer steps."""

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.mil import get_policy, load_function, observed
from tests.mil.programs import save

RNG = np.random.default_rng(15)


def weight(mb, rows, columns, kind="int4", blocks=1):
    from coremltools.converters.mil.mil import types

    numpy_kind = types.nptype_from_builtin(types.string_to_builtin(kind))
    low, high = {"int4": (-8, 8), "int8": (-128, 128)}[kind]
    data = RNG.integers(low, high, (rows, columns)).astype(numpy_kind)
    scale = (RNG.random((rows, blocks)) * 0.02).astype(np.float16)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale)


def layer(mb, a, b):
    """Return linears of a: three that join, one with a bias, one of 8 bits, one of b, one after."""

    def linear(x, rows, columns=128, bias=0.0, **kind):
        values = np.full(rows, bias, np.float16)
        return mb.linear(x=x, weight=weight(mb, rows, columns, **kind), bias=values)

    queries = linear(a, 320)
    scores = mb.mul(x=queries, y=np.float16(0.5))  # between the ones that join
    keys, values = linear(a, 272), linear(a, 1024)
    others = linear(a, 320, bias=0.25), linear(a, 320, kind="int8"), linear(b, 320)
    others += (linear(a, 320, kind="int4", blocks=4),)
    return [scores, keys, *others, linear(values, 96, 1024)]


@pytest.fixture(scope="module", params=[1, 3, 16, 40], ids="{} rows".format)
def package(request):
    return save(layer, [(request.param, 128)] * 2, dtypes=["fp16", "fp16"])


def called(function, inputs):
    return list(function(inputs).values())


@pytest.mark.parametrize("policy", ["widen", "double", "strict"])
def test_linears_of_one_input_are_one_step_with_the_same_values(package, policy):
    function = load_function(package, "main", get_policy(policy))
    carrier = torch.float64 if policy == "double" else torch.float32
    inputs = {
        name: torch.from_numpy(RNG.standard_normal(declared.shape)).to(carrier)
        for name, declared in function.inputs.items()
    }
    inputs["a"][0, 5] = 1e3  # an outlier
    first, second = called(function, inputs), called(function, inputs)
    assert all(map(torch.equal, first, second)) and len(first) == 7
    steps = function.plan.steps
    fused = [step for step in function._block._fused.steps if step.operation != "view"]
    assert len(steps) - len(fused) == (0 if policy == "strict" else 2)
    seen = []
    with observed(lambda step, results: seen.append(step)):
        assert all(map(torch.equal, called(function, inputs), first))
    assert seen == list(steps), "an observer sees each operation"


def test_nan_reaches_the_products_of_its_row_alone(package):
    function = load_function(package, "main", get_policy("widen"))
    inputs = {name: torch.ones(t.shape) for name, t in function.inputs.items()}
    inputs["a"][-1, 3] = torch.nan
    called(function, inputs)
    keys = called(function, inputs)[1]
    assert keys[-1].isnan().all() and not keys[:-1].isnan().any()


def test_a_fused_step_that_fails_names_an_operation(package):
    function = load_function(package, "main", get_policy("widen"))
    inputs = {name: torch.ones(t.shape) for name, t in function.inputs.items()}
    called(function, inputs), called(function, inputs)
    joined = next(s for s in function._block._fused.steps if s.operation == "linear" and s.fused)
    joined.run.func.__self__._group = None
    with pytest.raises(HarnessError, match="main', linear '.*': AttributeError"):
        called(function, inputs)


@pytest.mark.parametrize("other", [torch.ones(2, 128), torch.ones(3, 128, dtype=torch.int32)])
def test_joined_linears_read_no_other_memory(package, other):
    function = load_function(package, "main", get_policy("widen"))
    called(function, {name: torch.ones(t.shape) for name, t in function.inputs.items()})
    joined = next(s for s in function._block._fused.steps if s.operation == "linear" and s.fused)
    with pytest.raises(ValueError, match=r"for fp32 of \d+ rows"):
        joined.run(other)


def test_a_default_dtype_of_torch_changes_nothing(package):
    function = load_function(package, "main", get_policy("widen"))
    inputs = {name: torch.ones(t.shape) for name, t in function.inputs.items()}
    expected = called(function, inputs)
    torch.set_default_dtype(torch.float16)
    try:
        assert all(map(torch.equal, called(function, inputs), expected))
    finally:
        torch.set_default_dtype(torch.float32)
