"""References to the weight file are found at every place that a function can have them."""

import pytest

from harness.artifact.package import blob_references
from harness.artifact.proto import new_model


@pytest.fixture
def function():
    """Return a function with one operation, in a block for its opset."""
    function = new_model().mlProgram.functions["main"]
    function.block_specializations["CoreML8"].operations.add(type="op")
    return function


def operation(function):
    return function.block_specializations["CoreML8"].operations[0]


def compound(value, kind):
    """Put a value into a tuple, a list or a dictionary, which is inside another one."""
    outer = value.immediateValue.tuple.values.add().immediateValue
    match kind:
        case "tuple":
            return outer.tuple.values.add()
        case "list":
            return outer.list.values.add()
        case "key":
            return outer.dictionary.values.add().key
        case "value":
            return outer.dictionary.values.add().value


PLACES = {
    "an attribute of the operation": lambda f: operation(f).attributes["val"],
    "an input of the operation": lambda f: operation(f).inputs["x"].arguments.add().value,
    "a second binding": lambda f: [operation(f).inputs["x"].arguments.add() for _ in "ab"][1].value,
    "an attribute of the function": lambda f: f.attributes["a"],
    "an attribute of the block": lambda f: f.block_specializations["CoreML8"].attributes["a"],
    "an inner block": lambda f: operation(f).blocks.add().operations.add().attributes["val"],
    "a block two levels down": lambda f: (
        operation(f).blocks.add().operations.add().blocks.add().operations.add().attributes["val"]
    ),
    "a block for another opset": lambda f: (
        f.block_specializations["CoreML7"].operations.add().attributes["val"]
    ),
    "a tuple": lambda f: compound(operation(f).attributes["val"], "tuple"),
    "a list": lambda f: compound(operation(f).attributes["val"], "list"),
    "a dictionary's key": lambda f: compound(operation(f).attributes["val"], "key"),
    "a dictionary's value": lambda f: compound(operation(f).attributes["val"], "value"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_reference_is_found_and_can_be_changed(function, place):
    value = PLACES[place](function)
    value.blobFileValue.offset = 64
    (found,) = blob_references(function)
    found.offset = 128
    assert value.blobFileValue.offset == 128


def test_other_values_are_not_references(function):
    operation(function).attributes["val"].immediateValue.tensor.floats.values.append(1)
    operation(function).inputs["x"].arguments.add(name="a")
    before = function.SerializeToString(deterministic=True)
    assert list(blob_references(function)) == []
    assert function.SerializeToString(deterministic=True) == before
