"""Flexible shapes, optional inputs, images and classifiers, as MLModel presents them."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from PIL import Image

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
    with pytest.raises(RuntimeError, match=r"shape \[2, 6\]; allowed is \[2, 1 to 5\]"):
        model.predict({"x": array(2, 6)})


def test_listed_shapes_admit_no_other(summed):
    model = summed(ct.EnumeratedShapes([(2, 2), (2, 4)]))
    np.testing.assert_array_equal(model.predict({"x": array(2, 4)})["y"], array(2, 4) + 1)
    with pytest.raises(RuntimeError, match=r"\[2, 3\]; allowed is \[2, 2\], \[2, 4\]"):
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
        RuntimeError, match=r"do not go together; allowed are \[1, 2\] with \[2, 1\]"
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


def with_image(model, name, colours):
    """Return a model whose output is described as an image of 4 x 6 pixels."""
    spec = model.get_spec()
    (output,) = (output for output in spec.description.output if output.name == name)
    image = output.type.imageType
    image.height, image.width = 4, 6
    image.colorSpace = getattr(ct.proto.FeatureTypes_pb2.ImageFeatureType, colours)
    return ct.models.MLModel(spec, weights_dir=model.weights_dir)


PIXELS = np.arange(4 * 6 * 3).reshape(4, 6, 3).astype(np.uint8) * 3


@pytest.mark.parametrize("colours", ["RGB", "BGR"])
def test_a_colour_image_comes_back_as_rgba(converted, colours):
    layout = getattr(ct.colorlayout, colours)

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 4, 6))], opset_version=ct.target.iOS18)
    def program(x):
        # What the program sees as its first channel, it makes black.
        return mb.mul(x=x, y=np.array([0, 1, 1], np.float32).reshape(1, 3, 1, 1), name="y")

    model = converted(
        program,
        inputs=[ct.ImageType(name="x", shape=(1, 3, 4, 6), color_layout=layout)],
    )
    model = with_image(model, "y", colours)
    picture = model.predict({"x": Image.fromarray(PIXELS)})["y"]
    expected = PIXELS.copy()
    expected[..., 0 if colours == "RGB" else 2] = 0
    assert picture.mode == "RGBA" and picture.size == (6, 4)
    np.testing.assert_array_equal(np.array(picture)[..., :3], expected)
    assert np.all(np.array(picture)[..., 3] == 255)


def test_grey_images_and_scale_and_bias(converted):
    @mb.program(input_specs=[mb.TensorSpec((1, 1, 4, 6))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.add(x=x, y=0.0, name="y"), mb.mul(x=x, y=400.0, name="z")

    model = converted(
        program,
        inputs=[
            ct.ImageType(
                name="x",
                shape=(1, 1, 4, 6),
                color_layout=ct.colorlayout.GRAYSCALE,
                scale=1 / 255,
                bias=-0.25,
            )
        ],
    )
    outputs = with_image(model, "z", "GRAYSCALE").predict({"x": Image.fromarray(PIXELS[..., 0])})
    expected = PIXELS[..., 0] / 255 - 0.25
    np.testing.assert_allclose(outputs["y"][0, 0], expected, atol=1e-6)
    assert outputs["z"].mode == "L"
    np.testing.assert_allclose(np.array(outputs["z"]), np.clip(expected * 400, 0, 255), atol=0.51)


def test_half_precision_grey_images(converted):
    @mb.program(
        input_specs=[mb.TensorSpec((1, 1, 4, 6), dtype=ct.converters.mil.mil.types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x):
        return mb.add(x=x, y=np.float16(1.0), name="y")

    layout = ct.colorlayout.GRAYSCALE_FLOAT16
    model = converted(
        program,
        precision="FLOAT16",
        inputs=[ct.ImageType(name="x", shape=(1, 1, 4, 6), color_layout=layout)],
    )
    model = with_image(model, "y", "GRAYSCALE_FLOAT16")
    values = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    picture = model.predict({"x": Image.fromarray(values)})["y"]
    assert picture.mode == "F"
    np.testing.assert_array_equal(np.array(picture), values.astype("f2") + np.float16(1))


def test_a_picture_of_another_size_is_refused(converted):
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 4, 6))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.relu(x=x, name="y")

    model = converted(program, inputs=[ct.ImageType(name="x", shape=(1, 3, 4, 6))])
    with pytest.raises(
        RuntimeError, match=r"input 'x' is 8 high and 6 wide; allowed, .*, is \[4, 6\]"
    ):
        model.predict({"x": Image.new("RGB", (6, 8))})


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
