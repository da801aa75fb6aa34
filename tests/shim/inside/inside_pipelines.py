"""Pipelines: of ML Programs, in coremltools' own ways of making them, and detectors."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.models import datatypes
from coremltools.models.compute_plan import MLModelStructure

X = np.arange(6, dtype=np.float32).reshape(2, 3)
UP = np.linspace(-1, 1, 1500, dtype=np.float32).reshape(500, 3)
DOWN = np.linspace(1, -2, 1500, dtype=np.float32).reshape(3, 500)


@pytest.fixture
def halves(converted):
    """Return the models of h = x @ UP.T and y = h @ DOWN.T + z, each with a weight file."""

    @mb.program(input_specs=[mb.TensorSpec((2, 3))], opset_version=ct.target.iOS18)
    def first(x):
        return mb.linear(x=x, weight=UP, name="h")

    shapes = [mb.TensorSpec((2, 500)), mb.TensorSpec((2, 3))]

    @mb.program(input_specs=shapes, opset_version=ct.target.iOS18)
    def second(h, z):
        return mb.add(x=mb.linear(x=h, weight=DOWN), y=z, name="y")

    return converted(first), converted(second)


def test_each_model_of_a_pipeline_gets_what_is_known_by_its_names(halves, tmp_path):
    path = str(tmp_path / "both.mlpackage")
    ct.utils.make_pipeline(*halves).save(path)
    found = ct.models.MLModel(path).predict({"x": X, "z": 2 * X})
    assert found.keys() == {"y"}
    np.testing.assert_allclose(found["y"], X @ UP.T @ DOWN.T + 2 * X, rtol=1e-4)


def test_a_compiled_pipeline_predicts_and_has_the_structure_of_its_models(halves):
    pipeline = ct.utils.make_pipeline(*halves)
    path = pipeline.get_compiled_model_path()  # it is deleted with the model
    found = ct.models.CompiledMLModel(path).predict({"x": X, "z": X})
    np.testing.assert_allclose(found["y"], X @ UP.T @ DOWN.T + X, rtol=1e-4)
    models = MLModelStructure.load_from_path(path).pipeline.sub_models.values()
    kinds = [
        [o.operator_name for o in m.program.functions["main"].block.operations] for m in models
    ]
    assert ["add" in names for names in kinds] == [False, True]


def test_an_input_of_the_second_model_that_nobody_gives_is_named(halves):
    with pytest.raises(RuntimeError, match=r"model 2 of its pipeline.*'z' is missing"):
        ct.utils.make_pipeline(*halves).__proxy__.predict({"x": X})


def test_a_bisected_model_predicts_as_a_pipeline(converted, tmp_path):
    @mb.program(input_specs=[mb.TensorSpec((2, 3))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.linear(x=mb.relu(x=mb.linear(x=x, weight=UP)), weight=DOWN, name="y")

    whole = converted(program)
    whole.save(str(tmp_path / "m.mlpackage"))
    ct.models.utils.bisect_model(
        str(tmp_path / "m.mlpackage"),
        str(tmp_path),
        merge_chunks_to_pipeline=True,
        check_output_correctness=True,
    )
    pipeline = ct.models.MLModel(str(tmp_path / "m_chunked_pipeline.mlpackage"))
    np.testing.assert_allclose(
        pipeline.predict({"x": X})["y"], whole.predict({"x": X})["y"], rtol=2e-2
    )


def test_a_pipeline_with_a_neural_network_names_it(halves):
    @mb.program(input_specs=[mb.TensorSpec((2, 3))])
    def negative(y):
        return mb.mul(x=y, y=-1.0, name="minus")

    with pytest.warns(RuntimeWarning):
        network = ct.convert(negative, convert_to="neuralnetwork")
    with pytest.warns(RuntimeWarning, match=r"model 3 of its pipeline.*holds neuralNetwork; only"):
        ct.utils.make_pipeline(*halves, network, compute_units=ct.ComputeUnit.CPU_ONLY)


# --- detectors

# confidences of two classes; center x, center y, width, height
ROWS = np.array(
    [
        [0.9, 0.1, 0.50, 0.5, 0.2, 0.2],
        [0.8, 0.1, 0.51, 0.5, 0.2, 0.2],  # overlaps the first, of its class
        [0.1, 0.7, 0.50, 0.5, 0.2, 0.2],  # the first's place, another class
        [0.6, 0.2, 0.10, 0.1, 0.1, 0.1],
        [0.2, 0.1, 0.90, 0.9, 0.1, 0.1],  # too unsure
    ],
    np.float32,
)


def box_suppression(by_class, rows=None):
    """Return the specification of Core ML's suppression, whose results have `rows` boxes."""
    suppression = ct.proto.Model_pb2.Model()
    suppression.specificationVersion = 5
    for name, width in (("raw_marks", 2), ("raw_boxes", 4)):
        given = suppression.description.input.add()
        given.name, given.type.multiArrayType.dataType = (
            name,
            ct.proto.FeatureTypes_pb2.ArrayFeatureType.DOUBLE,
        )
        given.type.multiArrayType.shape.extend([5, width])
    for name in ("iou", "sure"):
        given = suppression.description.input.add()
        given.name = name
        given.type.doubleType.MergeFromString(b"")
        given.type.isOptional = True
    for name, width in (("marks", 2), ("boxes", 4)):
        made = suppression.description.output.add()
        made.name, made.type.multiArrayType.dataType = (
            name,
            ct.proto.FeatureTypes_pb2.ArrayFeatureType.DOUBLE,
        )
        if rows:
            for low, high in (rows, (width, width)):
                sizes = made.type.multiArrayType.shapeRange.sizeRanges.add()
                sizes.lowerBound, sizes.upperBound = low, high
    nms = suppression.nonMaximumSuppression
    nms.confidenceInputFeatureName, nms.coordinatesInputFeatureName = "raw_marks", "raw_boxes"
    nms.confidenceOutputFeatureName, nms.coordinatesOutputFeatureName = "marks", "boxes"
    nms.iouThresholdInputFeatureName, nms.confidenceThresholdInputFeatureName = "iou", "sure"
    nms.iouThreshold, nms.confidenceThreshold = 0.5, 0.3
    nms.pickTop.perClass = by_class
    return suppression


def detector(converted, by_class, rows=None):
    """Return a pipeline as exporters of detectors make it: boxes, then Core ML's suppression."""

    @mb.program(input_specs=[mb.TensorSpec(ROWS.shape)], opset_version=ct.target.iOS16)
    def program(image):
        marks = mb.slice_by_size(x=image, begin=[0, 0], size=[5, 2], name="raw_marks")
        return marks, mb.slice_by_size(x=image, begin=[0, 2], size=[5, 4], name="raw_boxes")

    boxes = converted(program, target="iOS16")
    suppression = box_suppression(by_class, rows)
    pipeline = ct.models.pipeline.Pipeline(
        [
            ("image", datatypes.Array(5, 6)),
            ("iou", datatypes.Double()),
            ("sure", datatypes.Double()),
        ],
        ["marks", "boxes"],
    )
    pipeline.add_model(boxes.get_spec())
    pipeline.add_model(suppression)
    pipeline.spec.description.output[0].ParseFromString(
        suppression.description.output[0].SerializeToString()
    )
    pipeline.spec.description.output[1].ParseFromString(
        suppression.description.output[1].SerializeToString()
    )
    pipeline.spec.specificationVersion = 7
    return ct.models.MLModel(pipeline.spec, weights_dir=boxes.weights_dir)


@pytest.mark.parametrize(("by_class", "kept"), [(True, [0, 2, 3]), (False, [0, 3])])
def test_a_detector_keeps_the_best_of_boxes_that_overlap(converted, by_class, kept):
    found = detector(converted, by_class).predict({"image": ROWS})
    np.testing.assert_allclose(found["marks"], ROWS[kept, :2], rtol=1e-6)
    np.testing.assert_allclose(found["boxes"], ROWS[kept, 2:], rtol=1e-6)


def test_the_thresholds_of_a_detector_are_inputs(converted):
    model = detector(converted, by_class=False)
    found = model.predict({"image": ROWS, "iou": 1.0, "sure": 0.65})
    np.testing.assert_allclose(found["marks"], ROWS[[0, 1, 2], :2], rtol=1e-6)


def test_a_described_number_of_boxes_is_filled_with_zeros_or_cut(converted):
    filled = detector(converted, by_class=False, rows=(4, 4)).predict({"image": ROWS})
    np.testing.assert_allclose(filled["boxes"][:2], ROWS[[0, 3], 2:], rtol=1e-6)
    assert filled["boxes"].shape == (4, 4) and not filled["boxes"][2:].any()
    cut = detector(converted, by_class=True, rows=(0, 2)).predict({"image": ROWS})
    np.testing.assert_allclose(cut["marks"], ROWS[[0, 2], :2], rtol=1e-6)


def test_box_suppression_alone_predicts_and_compiles():
    model = ct.models.MLModel(box_suppression(by_class=True))
    given = {"raw_marks": ROWS[:, :2], "raw_boxes": ROWS[:, 2:]}
    compiled = ct.models.CompiledMLModel(model.get_compiled_model_path())
    for found in (model.predict(given), compiled.predict(given)):
        np.testing.assert_allclose(found["boxes"], ROWS[[0, 2, 3], 2:], rtol=1e-6)
    given = {name: rows[:0] for name, rows in given.items()}
    assert model.__proxy__.predict(given)["marks"].shape == (0, 2)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (np.zeros((5, 0), np.float32), r"\[5, 0\].*at least one class"),
        (np.full((5, 2), "a"), r"'raw_marks' is <U1\[5, 2\]; give an array of numbers"),
        (None, "'raw_marks' is no array"),
    ],
)
def test_confidences_that_are_none_are_refused(marks, message):
    model = ct.models.MLModel(box_suppression(by_class=True))
    with pytest.raises(RuntimeError, match=message):
        model.__proxy__.predict({"raw_marks": marks, "raw_boxes": ROWS[:, 2:]})


@pytest.mark.parametrize("count", [-1, 1 << 40])
def test_a_described_number_of_boxes_beyond_all_limits_is_refused(count):
    specification = box_suppression(by_class=True)
    for output in specification.description.output:
        output.type.multiArrayType.shape.extend([count, 2 if output.name == "marks" else 4])
    model = ct.models.MLModel(specification)
    with pytest.raises(RuntimeError, match="negative size in|described with at least"):
        model.__proxy__.predict({"raw_marks": ROWS[:, :2], "raw_boxes": ROWS[:, 2:]})
