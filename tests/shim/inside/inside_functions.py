"""Multifunction packages and states."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

X = np.arange(64, dtype=np.float32).reshape(1, 64) / 64
WEIGHT = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)


def product(factor):
    @mb.program(input_specs=[mb.TensorSpec((1, 64))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.mul(x=mb.linear(x=x, weight=WEIGHT), y=factor, name="y")

    return program


@pytest.fixture
def package(converted, tmp_path):
    """Return a package of `double` (the default) and `negate`, which share a weight."""
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, factor in (("double", 2.0), ("negate", -1.0)):
        path = str(tmp_path / f"{name}.mlpackage")
        converted(product(factor)).save(path)
        descriptor.add_function(path, src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "double"
    path = str(tmp_path / "both.mlpackage")
    ct.utils.save_multifunction(descriptor, path)
    return path


def test_a_function_is_loaded_by_its_name(package):
    expected = X @ WEIGHT.T
    for name, factor in (("double", 2), ("negate", -1)):
        model = ct.models.MLModel(package, function_name=name)
        np.testing.assert_allclose(model.predict({"x": X})["y"], factor * expected, rtol=1e-5)


def test_without_a_name_it_is_the_default_function(package):
    y = ct.models.MLModel(package).predict({"x": X})["y"]
    np.testing.assert_allclose(y, 2 * X @ WEIGHT.T, rtol=1e-5)


def test_a_function_that_is_not_there_is_refused(package):
    with (
        pytest.warns(RuntimeWarning, match="no function 'halve'; its functions: double, negate"),
        pytest.raises(ValueError, match="halve"),
    ):
        ct.models.MLModel(package, function_name="halve")


def test_functions_that_are_loaded_together_share_their_weights(package):
    models = [ct.models.MLModel(package, function_name=name) for name in ("double", "negate")]
    first, second = (model.__proxy__._predictor._function for model in models)
    shared = {name for name in first._plan.names if name in second._plan.names}
    pointers = [
        (a.data_ptr(), b.data_ptr())
        for name in shared
        if (a := first.constant(name)) is not None
        and (b := second.constant(name)) is not None
        and a.numel() == WEIGHT.size
    ]
    assert pointers and all(a == b for a, b in pointers)


@pytest.fixture
def counter(converted):
    """Return a model with the state `total` [2], to which every call adds its input."""
    state = mb.StateTensorSpec((2,), dtype=types.fp16)

    @mb.program(
        input_specs=[mb.TensorSpec((2,), dtype=types.fp16), state], opset_version=ct.target.iOS18
    )
    def program(x, total):
        added = mb.add(x=mb.read_state(input=total), y=x)
        return mb.identity(x=mb.coreml_update_state(state=total, value=added), name="y")

    return converted(program, precision="FLOAT16")


ONE = np.ones(2, np.float32)


def test_a_state_goes_on_from_call_to_call(counter):
    state = counter.make_state()
    totals = [counter.predict({"x": ONE}, state=state)["y"].tolist() for _ in range(3)]
    assert totals == [[1, 1], [2, 2], [3, 3]]


def test_states_are_independent_of_each_other(counter):
    first, second = counter.make_state(), counter.make_state()
    counter.predict({"x": ONE}, state=first)
    assert counter.predict({"x": 5 * ONE}, state=second)["y"].tolist() == [5, 5]
    assert counter.predict({"x": ONE}, state=first)["y"].tolist() == [2, 2]


def test_a_state_can_be_read_and_written(counter):
    state = counter.make_state()
    (name,) = (entry.name for entry in counter.get_spec().description.state)
    assert state.read_state(name).tolist() == [0, 0]
    state.write_state(name, np.array([10, 20], np.float32))
    assert counter.predict({"x": ONE}, state=state)["y"].tolist() == [11, 21]
    read = state.read_state(name)
    assert read.dtype == np.float32 and read.tolist() == [11, 21]
    read[0] = 99
    assert state.read_state(name).tolist() == [11, 21]


def test_what_is_no_state_is_refused(counter):
    state = counter.make_state()
    (name,) = (entry.name for entry in counter.get_spec().description.state)
    with pytest.raises(RuntimeError, match=f"no state 'other'; the states: {name}"):
        state.read_state("other")
    with pytest.raises(RuntimeError, match=r"shape \[3\] cannot be written"):
        state.write_state(name, np.ones(3, np.float32))


def test_a_prediction_without_its_state_is_refused(counter):
    with pytest.raises(RuntimeError, match=r"has states .*; call it with a state"):
        counter.predict({"x": ONE})


def test_two_functions_go_on_from_each_other_in_one_state(counter, tmp_path):
    single, both = str(tmp_path / "single.mlpackage"), str(tmp_path / "both.mlpackage")
    counter.save(single)
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name in ("a", "b"):
        descriptor.add_function(single, src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "a"
    ct.utils.save_multifunction(descriptor, both)
    a, b = (ct.models.CompiledMLModel(compiled(both), function_name=name) for name in "ab")
    state = a.make_state()
    a.predict({"x": ONE}, state=state)
    assert b.predict({"x": ONE}, state=state)["y"].tolist() == [2, 2]


def compiled(path):
    return ct.models.utils.compile_model(path)
