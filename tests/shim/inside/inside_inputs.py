"""Flexible shapes, optional inputs and classifiers through MLModel."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol

A = np.arange(30, dtype=np.float32)


def array(*shape):
    return np.resize(A, shape)


@pytest.fixture
def summed(converted):
    """Return a function that makes a model of y = x + 1 for flexible shapes of x [rank 2]."""

    def make(shape, **options):
        spec = mb.TensorSpec(shape.symbolic_shape if hasattr(shape, "symbolic_shape") else shape)

        @mb.program(input_specs=[spec], opset_version=ct.target.iOS18)
        def program(x):
            return mb.add(x=x, y=1.0, name="y")

        return converted(program, inputs=[ct.TensorType(name="x", shape=shape, **options)])

    return make


def test_a_range_admits_what_lies_in_it(summed):
    shape = ct.Shape((2, ct.RangeDim(1, 5, default=3)))
    model = summed(shape)
    for width in (1, 3, 5):
        y = model.predict({"x": array(2, width)})["y"]
        np.testing.assert_array_equal(y, array(2, width) + 1)
    with pytest.raises(
        RuntimeError,
        match=r"shape \[2, 6\]; allowed is \[2, 1 to 5\] "
        r"\(Size \(6\) of dimension \(1\) is not in allowed range \(1\.\.5\)",
    ):
        model.predict({"x": array(2, 6)})


def test_listed_shapes_admit_no_other(summed):
    model = summed(ct.EnumeratedShapes([(2, 2), (2, 4)]))
    np.testing.assert_array_equal(model.predict({"x": array(2, 4)})["y"], array(2, 4) + 1)
    with pytest.raises(
        RuntimeError,
        match=r"\[2, 3\]; allowed is \[2, 2\], \[2, 4\] "
        r"\(MultiArray Shape \(2 x 3\) was not in enumerated set of allowed shapes",
    ):
        model.predict({"x": array(2, 3)})


def test_listed_shapes_of_two_inputs_go_together(converted):
    shapes = {
        "x": ct.EnumeratedShapes([(1, 2), (1, 3)]),
        "z": ct.EnumeratedShapes([(2, 1), (3, 1)]),
    }
    specs = [mb.TensorSpec(shape.symbolic_shape) for shape in shapes.values()]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, z):
        return mb.matmul(x=x, y=z, name="y")

    inputs = [ct.TensorType(name=name, shape=shape) for name, shape in shapes.items()]
    model = converted(program, inputs=inputs)
    for size in (2, 3):
        y = model.predict({"x": array(1, size), "z": array(size, 1)})["y"]
        np.testing.assert_array_equal(y, array(1, size) @ array(size, 1))
    with pytest.raises(
        RuntimeError, match=r"do not belong together; allowed are \[1, 2\] with \[2, 1\]"
    ):
        model.predict({"x": array(1, 2), "z": array(3, 1)})


def test_an_optional_input_has_its_default(converted):
    @mb.program(
        input_specs=[mb.TensorSpec((2,)), mb.TensorSpec((2,))], opset_version=ct.target.iOS18
    )
    def program(x, bias):
        return mb.add(x=x, y=bias, name="y")

    default = np.full((2,), 0.5, np.float32)
    inputs = [
        ct.TensorType(name="x", shape=(2,)),
        ct.TensorType(name="bias", shape=(2,), default_value=default),
    ]
    model = converted(program, inputs=inputs)
    x = np.array([1, 2], np.float32)
    assert model.predict({"x": x})["y"].tolist() == [1.5, 2.5]
    assert model.predict({"x": x, "bias": x})["y"].tolist() == [2, 4]


def test_ranges_of_two_inputs_are_independent(converted):
    specs = [mb.TensorSpec((get_new_symbol(), 2)), mb.TensorSpec((2, get_new_symbol()))]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, z):
        return mb.matmul(x=x, y=z, name="y")

    inputs = [
        ct.TensorType(name="x", shape=(ct.RangeDim(1, 4), 2)),
        ct.TensorType(name="z", shape=(2, ct.RangeDim(1, 3))),
    ]
    model = converted(program, inputs=inputs)
    for rows, columns in ((1, 3), (4, 1)):
        y = model.predict({"x": array(rows, 2), "z": array(2, columns)})["y"]
        np.testing.assert_array_equal(y, array(rows, 2) @ array(2, columns))
    with pytest.raises(RuntimeError, match=r"'z' has shape \[2, 4\]; allowed is \[2, 1 to 3\]"):
        model.predict({"x": array(1, 2), "z": array(2, 4)})


def test_an_input_that_may_be_left_out_is_filled_with_zeros(summed):
    model = summed((2, 3))
    spec = model.get_spec()
    spec.description.input[0].type.isOptional = True
    model = ct.models.MLModel(spec, weights_dir=model.weights_dir)
    np.testing.assert_array_equal(model.predict({})["y"], np.ones((2, 3)))


@pytest.mark.parametrize("labels", [["cat", "dog", "cow"], [7, 8, 9]])
def test_a_classifier_gives_a_label_and_probabilities(converted, labels):
    @mb.program(input_specs=[mb.TensorSpec((1, 3))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.softmax(x=x, axis=-1, name="p")

    model = converted(program, classifier_config=ct.ClassifierConfig(labels))
    outputs = model.predict({"x": np.array([[0, 2, 1]], np.float32)})
    assert outputs["classLabel"] == labels[1]
    (probabilities,) = (value for value in outputs.values() if isinstance(value, dict))
    expected = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    assert list(probabilities) == labels
    np.testing.assert_allclose(list(probabilities.values()), expected, rtol=1e-5)
