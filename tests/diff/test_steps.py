"""Steps: the content of a signature, which a hostile program cannot make grow."""

import tracemalloc

import pytest

from harness.artifact.proto import new_model
from harness.diff.steps import steps


def tensor(value_type, *sizes, dtype=11):
    value_type.tensorType.dataType = dtype
    for size in sizes:
        value_type.tensorType.dimensions.add().constant.size = size


@pytest.fixture
def function():
    """Return a function of one input `x`, FLOAT32[2, 3], and an empty block."""
    function = new_model().mlProgram.functions["main"]
    function.opset = "CoreML8"
    tensor(function.inputs.add(name="x").type, 2, 3)
    return function


def block(function):
    return function.block_specializations["CoreML8"]


def operation(function, kind, name, *inputs):
    made = block(function).operations.add(type=kind)
    tensor(made.outputs.add(name=name).type, 2, 3)
    for index, source in enumerate(inputs):
        made.inputs[f"p{index}"].arguments.add(name=source)
    return made


def read(function):
    return steps(function, block(function))


def test_a_signature_holds_types_and_no_names(function):
    operation(function, "add", "sum", "x", "x")
    first, last = read(function)
    assert first.signature == "add(p0=FLOAT32[2, 3], p1=FLOAT32[2, 3]) -> FLOAT32[2, 3]"
    assert (first.inputs, first.outputs) == (("x", "x"), ("sum",))
    assert (last.type, last.signature) == ("return", "return()")


def test_a_constant_belongs_to_the_operation_that_takes_it(function):
    value = operation(function, "const", "axis").attributes["val"]
    tensor(value.type, dtype=23)
    value.immediateValue.tensor.ints.values.append(-1)
    operation(function, "softmax", "y", "x", "axis")
    first, _ = read(function)
    assert first.signature == "softmax(p0=FLOAT32[2, 3], p1=INT32[] -1) -> FLOAT32[2, 3]"
    assert first.inputs == ("x",)


def test_a_weight_is_kept_beside_the_signature(function):
    value = operation(function, "const", "w").attributes["val"]
    tensor(value.type, 3, 3, dtype=10)
    value.blobFileValue.offset = 64
    operation(function, "linear", "y", "x", "w")
    first, _ = read(function)
    assert "p1=weight FLOAT16[3, 3]" in first.signature
    ((name, kept),) = first.weights
    assert (name, kept.blobFileValue.offset) == ("w", 64)


def test_the_outputs_of_a_function_are_a_step(function):
    operation(function, "relu", "y", "x")
    block(function).outputs.extend(["y", "x"])
    last = read(function)[-1]
    assert (last.type, last.inputs) == ("return", ("y", "x"))


def test_a_name_without_an_operation_does_not_crash(function):
    operation(function, "relu", "y", "nowhere")
    assert read(function)[0].signature == "relu(p0=unknown) -> FLOAT32[2, 3]"


def test_many_uses_of_a_huge_type_do_not_fill_the_memory(function):
    """20,000 axes used 20,000 times: half a megabyte of file, gigabytes of text."""
    tensor(function.inputs.add(name="huge").type, *range(20_000))
    made = operation(function, "concat", "y")
    for _ in range(20_000):
        made.inputs["values"].arguments.add(name="huge")
    tracemalloc.start()
    first, _ = read(function)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(first.inputs) == 20_000
    assert peak < 20_000_000
