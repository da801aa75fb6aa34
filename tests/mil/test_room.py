"""Intermediate tensors have the same limit of elements as a program's values."""

import numpy as np
import pytest
import torch

from harness.artifact import Package
from harness.artifact.files import MAX_ELEMENTS, max_elements
from harness.errors import ArtifactError, HarnessError
from harness.mil import get_policy, load_function
from tests.mil.programs import save

KERNEL = np.ones((1, 1, 2, 2), np.float32)
HUGE = 1 << 30


def with_integers(package, kind, parameter, index, value):
    """Return the package with one integer of an operation's constant parameter changed."""
    model = type(package.model)()
    model.CopyFrom(package.model)
    function = model.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    (name,) = (op.inputs[parameter].arguments[0].name for op in operations if op.type == kind)
    (made,) = (op for op in operations if op.outputs[0].name == name)
    made.attributes["val"].immediateValue.tensor.ints.values[index] = value
    return Package({**package.files, package.spec_path: memoryview(model.SerializeToString())}, "x")


def convolution(mb, a):
    return mb.conv(x=a, weight=KERNEL, pad_type="custom", pad=[0, 0, 0, 0], strides=[1, 1])


def transposed(mb, a):
    return mb.conv_transpose(x=a, weight=KERNEL, strides=[1, 1])


def pooled(mb, a):
    sizes = {"kernel_sizes": [1, 1], "strides": [1, 1]}
    return mb.max_pool(x=a, pad_type="custom", pad=[0, 0, 0, 0], **sizes)


@pytest.mark.parametrize(
    ("build", "kind", "parameter", "what"),
    [
        (convolution, "conv", "pad", "the padded input"),
        (transposed, "conv_transpose", "strides", "the full result"),
        (pooled, "max_pool", "pad", "windows|the padded input"),
    ],
)
def test_what_is_made_on_the_way_is_measured_before(build, kind, parameter, what):
    package = save(build, [(1, 1, 4, 4)])
    image = torch.ones(1, 1, 4, 4)
    load_function(package, "main", get_policy("strict"))({"a": image})
    broken = with_integers(package, kind, parameter, 1, HUGE)
    with pytest.raises(HarnessError, match=rf"function 'main', {kind} '.*({what})"):
        load_function(broken, "main", get_policy("strict"))({"a": image})


def test_a_program_may_hold_more_the_larger_its_files_are():
    assert max_elements(1000) == MAX_ELEMENTS
    assert max_elements(1 << 30) == 1 << 32  # a 1B model's 4-bit weights, and room


def test_a_result_that_is_declared_too_large_is_refused_at_load():
    package = save(lambda mb, a: mb.relu(x=a), [(2, 2)])
    model = type(package.model)()
    model.CopyFrom(package.model)
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    block.operations[-1].outputs[0].type.tensorType.dimensions[0].constant.size = MAX_ELEMENTS
    files = {**package.files, package.spec_path: memoryview(model.SerializeToString())}
    with pytest.raises(ArtifactError, match=f"relu '.*a result of over {MAX_ELEMENTS} elements"):
        load_function(Package(files, "x"), "main", get_policy("strict"))
