"""These tests run in a child, under `harness shim`: `test_inside.py` starts it."""

import gc

import coremltools as ct
import pytest
from coremltools.converters.mil import Builder as mb

gc.freeze()  # coremltools collects garbage per conversion: see tests/mil/programs.py


@pytest.fixture
def converted():
    """Return a function that converts a program to an MLModel, loaded."""

    def convert(program, target="iOS18", precision="FLOAT32", **options):
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=getattr(ct.precision, precision),
            compute_units=ct.ComputeUnit.CPU_ONLY,
            **options,
        )

    return convert


@pytest.fixture
def scaled(converted):
    """Return a function that makes a model of y = factor * x + 1, x [2, 3]."""

    def make(factor, **options):
        @mb.program(input_specs=[mb.TensorSpec((2, 3))], opset_version=ct.target.iOS18)
        def program(x):
            return mb.add(x=mb.mul(x=x, y=float(factor)), y=1.0, name="y")

        return converted(program, **options)

    return make
