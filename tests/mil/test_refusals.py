"""A program that contradicts itself or is unsupported is refused in one sentence, with names."""

import numpy as np
import pytest
import torch

from harness.artifact import Package
from harness.errors import ArtifactError, HarnessError
from harness.mil import get_policy, load_function
from tests.mil.programs import save

RNG = np.random.default_rng(8)
X = RNG.standard_normal((2, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((16, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def program():
    def build(mb, a):
        hidden = mb.reshape(x=mb.linear(x=a, weight=WEIGHT), shape=[4, 8])
        first, second = mb.split(x=hidden, num_splits=2, axis=1)
        scaled = mb.constexpr_blockwise_shift_scale(
            data=RNG.integers(-8, 8, (64, 64)).astype(np.int8), scale=np.ones((64, 1), np.float32)
        )
        joined = mb.concat(values=[first, second], axis=0)
        return mb.softmax(x=joined, axis=1), mb.reduce_sum(x=scaled, axes=[0])

    return save(build, [(2, 4)])


def edited(package, change):
    """Return the package with `change(function, block)` made."""
    model = type(package.model)()
    model.CopyFrom(package.model)
    function = model.mlProgram.functions["main"]
    change(function, function.block_specializations[function.opset])
    files = dict(package.files)
    files[package.spec_path] = memoryview(model.SerializeToString())
    return Package(files, "edited")


def find(block, kind):
    return next(op for op in block.operations if op.type == kind)


def constant(block, operation, parameter):
    """Return the value of the const that an operation's parameter is bound to."""
    name = find(block, operation).inputs[parameter].arguments[0].name
    producers = {out.name: op for op in block.operations for out in op.outputs}
    return producers[name].attributes["val"]


def no_block(function, block):
    function.opset = "CoreML9"


def unknown_constexpr(function, block):
    find(block, "constexpr_blockwise_shift_scale").type = "constexpr_of_another_day"


def a_state_goes_in(function, block):
    kept = function.inputs[0].type.tensorType
    function.inputs[0].type.stateType.wrappedType.tensorType.CopyFrom(kept)


def a_list_is_made(function, block):
    find(block, "softmax").outputs[0].type.listType.SetInParent()


def unknown_dtype(function, block):
    find(block, "softmax").outputs[0].type.tensorType.dataType = 99


def flexible_constant(function, block):
    value = constant(block, "linear", "weight")
    value.type.tensorType.dimensions[0].unknown.SetInParent()


def integers_for_floats(function, block):
    constant(block, "softmax", "axis").type.tensorType.dataType = 11


def too_many_values(function, block):
    constant(block, "reshape", "shape").immediateValue.tensor.ints.values.append(1)


def too_few_values(function, block):
    del constant(block, "reshape", "shape").immediateValue.tensor.ints.values[:]


def larger_weight(function, block):
    constant(block, "linear", "weight").type.tensorType.dimensions[0].constant.size = 17


def smaller_weight(function, block):
    constant(block, "linear", "weight").type.tensorType.dimensions[0].constant.size = 15


def computed_parameter(function, block):
    find(block, "softmax").inputs["axis"].arguments[0].name = find(block, "linear").outputs[0].name


def missing_parameter(function, block):
    del find(block, "reshape").inputs["shape"]


def parameter_of_another_kind(function, block):
    binding = find(block, "reshape").inputs["shape"].arguments[0]
    binding.value.CopyFrom(constant(block, "softmax", "axis"))


def text_as_a_tensor(function, block):
    value = find(block, "linear").inputs["x"].arguments[0].value
    value.type.tensorType.dataType = 2
    value.immediateValue.tensor.strings.values.append("one")


def const_without_value(function, block):
    del find(block, "const").attributes["val"]


def no_output(function, block):
    del find(block, "softmax").outputs[:]


def result_of_nothing(function, block):
    block.outputs.append("nowhere")


def blocks_of_weights(function, block):
    constexpr = find(block, "constexpr_blockwise_shift_scale")
    constexpr.inputs["scale"].CopyFrom(find(block, "linear").inputs["bias"])


AT_LOAD = [
    (no_block, "function 'main': no block for its opset 'CoreML9'"),
    (unknown_constexpr, "'constexpr_of_another_day' of opset CoreML8 is not implemented"),
    (a_state_goes_in, "linear '.*': parameter 'x' cannot be a StateType"),
    (a_list_is_made, "softmax '.*': a value of kind listType; only tensors"),
    (unknown_dtype, "softmax '.*': unknown MIL dtype 99"),
    (flexible_constant, "const '.*': a constant with a flexible shape"),
    (integers_for_floats, "const '.*': declared FLOAT32, but its value is in 'ints'"),
    (too_many_values, "const '.*': declared 2 values of INT32, holds 3"),
    (too_few_values, "const '.*': declared 2 values of INT32, holds 0"),
    (larger_weight, r"const '.*': FLOAT32\[17, 4\] needs 272 bytes, has 256"),
    (smaller_weight, r"const '.*': FLOAT32\[15, 4\] needs 240 bytes, has 256"),
    (computed_parameter, "softmax '.*': parameter 'axis' is computed by the program"),
    (missing_parameter, "reshape '.*': parameter 'shape' is missing"),
    (parameter_of_another_kind, "reshape '.*': the operation does not take a parameter's value"),
    (text_as_a_tensor, "function 'main': a STRING is used as a tensor"),
    (const_without_value, "const '.*': a const without 'val'"),
    (no_output, "function 'main': operation [0-9]+, softmax, has no output"),
    (result_of_nothing, "function 'main', its outputs: uses 'nowhere'"),
    (blocks_of_weights, r"constexpr_.*: scale \[16\] does not divide data \[64, 64\]"),
]


@pytest.mark.parametrize(("change", "problem"), AT_LOAD, ids=[c.__name__ for c, _ in AT_LOAD])
def test_a_contradiction_is_named_at_load(program, change, problem):
    with pytest.raises(ArtifactError, match=f"^edited.*{problem}"):
        load_function(edited(program, change), "main", get_policy("strict"))


def another_size(function, block):
    constant(block, "reshape", "shape").immediateValue.tensor.ints.values[:] = [4, 9]


def another_axis(function, block):
    constant(block, "softmax", "axis").immediateValue.tensor.ints.values[:] = [7]


def more_parts_than_declared(function, block):
    constant(block, "split", "num_splits").immediateValue.tensor.ints.values[:] = [4]


def another_rank(function, block):
    find(block, "softmax").outputs[0].type.tensorType.dimensions.add().constant.size = 1


AT_CALL = [
    (another_size, "reshape '.*': RuntimeError: shape '.4, 9.' is invalid"),
    (another_axis, "softmax '.*': IndexError: Dimension out of range"),
    (more_parts_than_declared, "split '.*': returns 4 results, the program declares 2"),
    (another_rank, r"softmax '.*': returns shape \[8, 4\], the program declares \[8, 4, 1\]"),
]


@pytest.mark.parametrize(("change", "problem"), AT_CALL, ids=[c.__name__ for c, _ in AT_CALL])
def test_an_operation_that_fails_is_named_in_one_line(program, change, problem):
    function = load_function(edited(program, change), "main", get_policy("strict"))
    with pytest.raises(HarnessError, match=f"^edited, function 'main', {problem}") as failure:
        function({"a": torch.from_numpy(X)})
    assert "\n" not in str(failure.value)


def test_the_program_itself_is_executed(program):
    function = load_function(program, "main", get_policy("widen"))
    rows = X @ WEIGHT.T
    rows = np.concatenate(np.split(rows.reshape(4, 8), 2, axis=1))
    expected = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    result = next(iter(function({"a": torch.from_numpy(X)}).values()))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_an_operation_with_a_block_too_few_is_named():
    def build(mb, a):
        positive = mb.greater(x=mb.reduce_sum(x=a), y=0.0)
        return mb.cond(pred=positive, _true_fn=lambda: mb.relu(x=a), _false_fn=lambda: mb.abs(x=a))

    def change(function, block):
        del find(block, "cond").blocks[1]

    package = edited(save(build, [X.shape]), change)
    with pytest.raises(ArtifactError, match="function 'main', cond '.*with 1 blocks is not impl"):
        load_function(package, "main", get_policy("widen"))


def test_a_block_inside_a_known_operation_is_not_ignored(program):
    def change(function, block):
        find(block, "softmax").blocks.add()

    with pytest.raises(ArtifactError, match="softmax '.*is not implemented"):
        load_function(edited(program, change), "main", get_policy("strict"))


@pytest.mark.parametrize(
    ("build", "change", "problem"),
    [
        (
            lambda mb, a: mb.pad(x=a, pad=[1, 1]),
            lambda values: values.__setitem__(slice(None), [1 << 20, 1 << 20]),
            r"pad '.*sizes \[1048576, 1048576\] do not give \[2, 6\]",
        ),
        (
            lambda mb, a: mb.one_hot(indices=mb.cast(x=a, dtype="int32"), one_hot_vector_size=3),
            lambda values: values.__setitem__(slice(None), [1 << 20]),
            r"one_hot '.*vectors of 1048576 do not give \[2, 4, 3\]",
        ),
    ],
)
def test_nothing_is_made_that_is_larger_than_declared(build, change, problem):
    name = {"pad": "pad", "one": "one_hot_vector_size"}[problem[:3]]
    kind = "pad" if name == "pad" else "one_hot"

    def widened(function, block):
        change(constant(block, kind, name).immediateValue.tensor.ints.values)

    function = load_function(edited(save(build, [(2, 4)]), widened), "main", get_policy("widen"))
    with pytest.raises(HarnessError, match=problem):
        function({"a": torch.from_numpy(X)})
