import os
import shutil
import sys

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

X = np.array([[-2.0, -1.0, 0.0], [0.5, 1.0, 3.0]], np.float32)


def test_a_prediction_is_what_numpy_computes(scaled):
    outputs = scaled(3).predict({"x": X})
    assert outputs.keys() == {"y"} and outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outputs["y"], 3 * X + 1)


def test_nothing_else_is_made_to_look_like_a_mac():
    assert sys.platform == "linux" and os.uname().sysname == "Linux"
    assert ct.models.utils._is_macos() and ct.models.utils._macos_version() >= (15, 0)


@pytest.mark.parametrize("value", [X.astype(np.float64), X.tolist(), torch.from_numpy(X)])
def test_lists_tensors_and_doubles_are_taken(scaled, value):
    np.testing.assert_array_equal(scaled(2).predict({"x": value})["y"], 2 * X + 1)


def test_fp16_results_are_rounded_and_come_as_float32(converted):
    @mb.program(input_specs=[mb.TensorSpec((4,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.mul(x=x, y=1.1, name="y")

    x = np.array([1, 3, 1000, 60000], np.float32)
    y = converted(program, precision="FLOAT16").predict({"x": x})["y"]
    assert y.dtype == np.float32
    with np.errstate(over="ignore"):  # the last product is beyond fp16's range
        expected = x.astype("f2") * np.float16(1.1)
    np.testing.assert_array_equal(y, expected.astype("f4"))
    assert np.isinf(y[3])


def test_a_prediction_that_is_not_finite_is_reported_once(converted, capfd):
    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.sqrt(x=x, name="y")

    model = converted(program)
    model.predict({"x": np.array([0, 1, 4], np.float32)})
    for _ in range(2):
        model.predict({"x": np.array([1, -1, 4], np.float32)})
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "NaN" in one]
    assert "1 of 3 numbers of output 'y' [3] are NaN or infinite, the first at [1]" in line


def test_the_policy_is_chosen_by_an_environment_variable(converted, monkeypatch):
    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.square(x=x, name="y")

    x = {"x": np.array([300], np.float32)}
    assert np.isinf(converted(program, precision="FLOAT16").predict(dict(x))["y"])
    monkeypatch.setenv("HARNESS_POLICY", "widen")
    assert converted(program, precision="FLOAT16").predict(dict(x))["y"] == 90000
    monkeypatch.setenv("HARNESS_POLICY", "exact")
    with pytest.warns(RuntimeWarning, match="no number policy 'exact'; choose from strict, widen"):
        converted(program)


def test_a_scalar_comes_back_with_shape_1(converted):
    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.reduce_sum(x=x, axes=[0], keep_dims=False, name="y")

    y = converted(program).predict({"x": np.array([1, 2, 4], np.float32)})["y"]
    assert y.shape == (1,) and y == 7


def test_integers_come_back_as_int32(converted):
    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.cast(x=x, dtype="int32", name="y"), mb.greater(x=x, y=0.0, name="z")

    outputs = converted(program).predict({"x": np.array([1.7, -2.2, 0.0], np.float32)})
    assert outputs["y"].dtype == np.int32 and outputs["y"].tolist() == [1, -2, 0]
    assert outputs["z"].tolist() == [1, 0, 0]


def test_a_batch_is_one_prediction_for_each(scaled):
    outputs = scaled(2).predict([{"x": X}, {"x": X + 1}])
    assert len(outputs) == 2
    np.testing.assert_array_equal(outputs[1]["y"], 2 * (X + 1) + 1)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"x": X[:, :2]}, r"input 'x' has shape \[2, 2\], not the declared \[2, 3\]"),
        (
            {"x": X[0]},
            r"prediction using ML Program: .*, function 'main': input 'x' has shape \[3\]",
        ),
        ({}, r"input 'x' is missing; it is an array, by default of shape \[2, 3\]"),
        ({"x": X.astype(np.int64)}, "an array of int64; Core ML takes float32, float64, int32"),
        ({"x": np.full((2, 3), "a")}, "'x' is an array of <U1"),
    ],
)
def test_a_wrong_input_is_refused_with_what_is_allowed(scaled, inputs, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        scaled(2).predict(inputs)


def test_an_unknown_input_is_coremltools_own_error(scaled):
    with pytest.raises(KeyError, match='Provided key "z"'):
        scaled(2).predict({"x": X, "z": X})


def test_a_model_that_was_saved_is_loaded_by_path(scaled, tmp_path):
    scaled(4).save(str(tmp_path / "m.mlpackage"))
    model = ct.models.MLModel(str(tmp_path / "m.mlpackage"), function_name="main")
    shutil.rmtree(tmp_path / "m.mlpackage")
    np.testing.assert_array_equal(model.predict({"x": X})["y"], 4 * X + 1)


def test_a_model_that_was_written_to_the_same_path_is_another(scaled, tmp_path):
    path = str(tmp_path / "m.mlpackage")
    scaled(4).save(path)
    first = ct.models.MLModel(path)
    scaled(5).save(path)
    second = ct.models.MLModel(path)
    np.testing.assert_array_equal(first.predict({"x": X})["y"], 4 * X + 1)
    np.testing.assert_array_equal(second.predict({"x": X})["y"], 5 * X + 1)


def test_an_unknown_operation_is_named_when_the_model_is_loaded(scaled):
    model = scaled(2)
    spec = model.get_spec()
    main = spec.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    next(op for op in operations if op.type == "mul").type = "frobnicate"
    with pytest.warns(RuntimeWarning, match=r"'main'.*'frobnicate' of opset CoreML8"):
        broken = ct.models.MLModel(spec, weights_dir=model.weights_dir)
    with pytest.raises(RuntimeError, match="frobnicate"):
        broken.predict({"x": X})


def test_a_neural_network_is_refused_with_a_sentence():
    @mb.program(input_specs=[mb.TensorSpec((2, 3))])
    def program(x):
        return mb.relu(x=x)

    words = 'holds neuralNetwork; only an ML Program can be read: .*convert_to="mlprogram"'
    with pytest.warns(RuntimeWarning, match=words):
        model = ct.convert(program, convert_to="neuralnetwork")
    with pytest.raises(RuntimeError, match=words):
        model.predict({"x": X})


def test_durations_are_measured(scaled):
    model = scaled(2)
    assert model.load_duration_in_nano_seconds > 0
    assert model.last_predict_duration_in_nano_seconds is None
    model.predict({"x": X})
    assert model.last_predict_duration_in_nano_seconds > 0
