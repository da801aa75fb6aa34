"""Images through MLModel: colours, sizes, and refusals."""

import sys

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from PIL import Image

GREY = np.full((1, 1, 4, 6), 7, np.float32)


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
        # The program makes its first channel black.
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


@pytest.fixture
def flattened(converted):
    """Return a function that makes a model of the mean of each channel of an image."""

    def make(shape):
        symbolic = shape.symbolic_shape if hasattr(shape, "symbolic_shape") else shape

        @mb.program(input_specs=[mb.TensorSpec(symbolic)], opset_version=ct.target.iOS18)
        def program(x):
            return mb.reduce_mean(x=x, axes=[2, 3], name="y")

        return converted(program, inputs=[ct.ImageType(name="x", shape=shape)])

    return make


def noise(height, width, mode="RGB"):
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def means(picture):
    return np.array(picture, np.float32)[..., :3].mean(axis=(0, 1))[None]


def test_pictures_of_listed_sizes_are_taken(flattened):
    model = flattened(ct.EnumeratedShapes([(1, 3, 4, 6), (1, 3, 8, 2)]))
    for size in ((4, 6), (8, 2)):
        y = model.predict({"x": noise(*size)})["y"]
        np.testing.assert_allclose(y, means(noise(*size)), rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"4 high and 2 wide; .*, is \[4, 6\], \[8, 2\]"):
        model.predict({"x": noise(4, 2)})


def test_pictures_of_sizes_in_a_range_are_taken(flattened):
    model = flattened(ct.Shape((1, 3, ct.RangeDim(2, 9, default=4), ct.RangeDim(3, 5, default=4))))
    for size in ((2, 3), (9, 5)):
        y = model.predict({"x": noise(*size)})["y"]
        np.testing.assert_allclose(y, means(noise(*size)), rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"9 high and 6 wide; .*, is \[2 to 9, 3 to 5\]"):
        model.predict({"x": noise(9, 6)})


def compiled(model):
    """Return the model without `MLModel`'s own checks of its inputs."""
    loaded = ct.models.CompiledMLModel(model.get_compiled_model_path())
    loaded.source = model  # its compiled files are removed with it
    return loaded


def test_what_is_transparent_is_not_looked_at(flattened):
    picture = noise(4, 6, "RGBA")
    y = compiled(flattened((1, 3, 4, 6))).predict({"x": picture})["y"]
    np.testing.assert_allclose(y, means(picture), rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"x": noise(4, 6, "L")}, "a picture of mode L; the model takes RGB, .* RGB or RGBA"),
        ({"x": GREY}, "'x' is a ndarray; the model takes RGB"),
        ({}, "input 'x' is missing; it is an image"),
    ],
)
def test_what_is_no_fitting_picture_is_refused(flattened, inputs, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        compiled(flattened((1, 3, 4, 6))).predict(inputs)


def test_a_picture_needs_pillow_and_the_error_says_so(converted, monkeypatch):
    @mb.program(input_specs=[mb.TensorSpec((1, 1, 4, 6))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.relu(x=x, name="y")

    model = with_image(converted(program), "y", "GRAYSCALE")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeError, match="Pillow is not installed: pip install pillow"):
        model.predict({"x": GREY})
