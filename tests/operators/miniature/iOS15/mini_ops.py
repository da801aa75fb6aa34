"""Tests in coremltools' style, one for every outcome that the suite distinguishes."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.testing_reqs import BackendConfig

X = np.array([1.0, 2.0, 3.0], np.float32)


def predict(kind):
    """Predict 1.1 * X, computed in fp16 or fp32."""

    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS16)
    def program(x):
        factor = np.float16(1.1) if kind == "fp16" else np.float32(1.1)
        return mb.cast(x=mb.mul(x=mb.cast(x=x, dtype=kind), y=factor), dtype="fp32")

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    (result,) = model.predict({"x": X}).values()
    return result


def test_right():
    np.testing.assert_allclose(predict("fp32"), 1.1 * X, rtol=1e-6)


def test_wrong():
    np.testing.assert_allclose(predict("fp32"), 1.101 * X, rtol=1e-6)


def test_right_to_fp16_resolution():
    np.testing.assert_allclose(predict("fp16"), 1.1 * X, rtol=1e-6)


def test_wrong_even_to_fp16_resolution():
    np.testing.assert_allclose(predict("fp16"), 1.11 * X, rtol=1e-6)


def test_right_by_an_assertion_of_its_own():
    assert predict("fp32").shape == (3,)


def test_without_a_prediction():
    np.testing.assert_allclose(X, X)


def test_broken_before_a_model_is_loaded():
    raise ValueError("no such file")


def test_that_cannot_load_its_model():
    @mb.program(input_specs=[mb.TensorSpec((3,))])
    def program(x):
        return mb.relu(x=x)

    ct.convert(program, convert_to="neuralnetwork").predict({"x": X})


def test_skipped():
    pytest.skip("not here")


@pytest.mark.xfail(reason="upstream knows")
@pytest.mark.parametrize("factor", [1, 1.1], ids=["fails", "passes"])
def test_expected_to_fail(factor):
    np.testing.assert_allclose(predict("fp32"), factor * X, rtol=1e-6)


@pytest.mark.parametrize(
    "backend",
    [BackendConfig("mlprogram", precision, ct.target.iOS16) for precision in ("fp16", "fp32")],
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_configurations(backend, size):
    assert backend.precision == "fp32"
    np.testing.assert_allclose(predict("fp32")[:size], (1.1 * X)[:size], rtol=1e-6)
