"""The lowest specification version that supports all features of a model."""

import pytest

from harness.artifact.proto import new_model, parse_specification
from harness.errors import ArtifactError
from harness.shim.structure import with_lowest_version

FLOAT16, FLOAT32, INT8 = 65552, 65568, 131080


def model(opset="CoreML5", version=10, input_kind=FLOAT32, output_kind=FLOAT32, change=None):
    message = new_model()
    message.specificationVersion = version
    message.mlProgram.version = 1
    message.mlProgram.functions["main"].opset = opset
    for features, kind in (
        (message.description.input, input_kind),
        (message.description.output, output_kind),
    ):
        features.add(name="x").type.multiArrayType.dataType = kind
    if change:
        change(message.description)
    return message.SerializeToString()


def version(data):
    return parse_specification(memoryview(with_lowest_version(data)), "a test").specificationVersion


def with_state(description):
    description.state.add(name="s")


def with_functions(description):
    description.functions.add(name="main")


def with_an_int8_in_a_function(description):
    feature = description.functions.add(name="main").input.add(name="x")
    feature.type.multiArrayType.dataType = INT8


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, 6),
        ({"opset": "CoreML6"}, 7),
        ({"opset": "CoreML7"}, 8),
        ({"opset": "CoreML8"}, 9),
        ({"version": 6}, 6),
        ({"input_kind": FLOAT16}, 7),
        ({"output_kind": FLOAT16}, 7),
        ({"opset": "CoreML8", "output_kind": INT8}, 10),
        ({"change": with_state}, 9),
        ({"change": with_functions}, 9),
        ({"change": with_an_int8_in_a_function}, 10),
    ],
)
def test_a_version_is_what_its_parts_need(options, needed):
    assert version(model(**options)) == needed


def test_nothing_but_the_version_changes():
    before, after = (
        parse_specification(memoryview(d), "a test")
        for d in (model(), with_lowest_version(model()))
    )
    before.specificationVersion = after.specificationVersion
    assert before == after


def test_an_opset_that_is_not_known_is_named():
    with pytest.raises(ArtifactError, match="no known opset.*CoreML99"):
        with_lowest_version(model(opset="CoreML99"))


def test_a_program_without_functions_has_no_opset():
    message = new_model()
    message.mlProgram.version = 1
    with pytest.raises(ArtifactError, match="no known opset.*none"):
        with_lowest_version(message.SerializeToString())


def test_a_model_of_another_kind_is_refused():
    message = new_model()
    message.neuralNetwork.SetInParent()
    with pytest.raises(ArtifactError, match="holds neuralNetwork; only an ML Program"):
        with_lowest_version(message.SerializeToString())


@pytest.mark.parametrize("value", [None, "model.mlpackage"])
def test_what_is_not_bytes_is_a_type_error(value):
    with pytest.raises(TypeError, match="a model is bytes, not"):
        with_lowest_version(value)
