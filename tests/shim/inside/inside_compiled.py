"""Compiled models, assets, devices, compute plans, structure, and our own Core ML runtime."""

import asyncio
import re
import shutil
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.models.compute_device import MLComputeDevice, MLCPUComputeDevice
from coremltools.models.compute_plan import MLComputePlan, MLModelStructure
from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
from coremltools.models.model import MLModelAsset

from harness.artifact import Package
from harness.runtimes.coreml import CompiledPackage, CoreMLFunction

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def weighted(converted):
    """Return a model of y = x @ w.T with a weight in a file, and the expected result for X."""
    weight = np.linspace(-1, 1, 3 * 500, dtype=np.float32).reshape(500, 3)

    @mb.program(input_specs=[mb.TensorSpec((2, 3))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.linear(x=x, weight=weight, name="y")

    return converted(program), X @ weight.T


def test_a_compiled_path_can_be_copied_and_loaded(weighted, tmp_path):
    model, expected = weighted
    path = model.get_compiled_model_path()
    assert path.endswith(".mlmodelc")
    shutil.copytree(path, tmp_path / "kept.mlmodelc")
    compiled = ct.models.CompiledMLModel(str(tmp_path / "kept.mlmodelc"))
    np.testing.assert_allclose(compiled.predict({"x": X})["y"], expected, rtol=1e-5)


def test_the_compiled_path_is_gone_with_its_model(scaled):
    model = scaled(2)
    path = Path(model.get_compiled_model_path())
    assert path.is_dir()
    del model
    assert not path.exists()


def test_a_package_is_compiled_to_where_the_caller_wants_it(weighted, tmp_path):
    model, expected = weighted
    model.save(str(tmp_path / "m.mlpackage"))
    path = ct.models.utils.compile_model(
        str(tmp_path / "m.mlpackage"), str(tmp_path / "here.mlmodelc")
    )
    batch = ct.models.CompiledMLModel(path).predict([{"x": X}, {"x": 2 * X}])
    np.testing.assert_allclose(batch[1]["y"], 2 * expected, rtol=1e-5)


def test_what_core_ml_compiled_is_refused(tmp_path):
    folder = tmp_path / "theirs.mlmodelc"
    folder.mkdir()
    (folder / "coremldata.bin").write_bytes(b"\x00")
    with pytest.raises(RuntimeError, match="Core ML compiled it, and only Core ML can load it"):
        ct.models.CompiledMLModel(str(folder))


def test_a_compiled_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no such folder"):
        ct.models.CompiledMLModel(str(tmp_path / "none.mlmodelc"))


def test_an_asset_from_memory_with_its_weights(weighted):
    model, expected = weighted
    weights = Path(model.weights_dir, "weight.bin").read_bytes()
    asset = MLModelAsset.from_memory(
        model.get_spec().SerializeToString(), {"weights/weight.bin": weights}
    )
    compiled = ct.models.CompiledMLModel.from_asset(asset)
    np.testing.assert_allclose(compiled.predict({"x": X})["y"], expected, rtol=1e-5)


def test_an_asset_without_its_weights_is_refused(weighted):
    asset = MLModelAsset.from_memory(weighted[0].get_spec().SerializeToString())
    with pytest.raises(RuntimeError, match=r"weight file '@model_path/weights/weight.bin' is not"):
        ct.models.CompiledMLModel.from_asset(asset)


@pytest.mark.parametrize("name", ["../../weight.bin", "/weight.bin", "weights/../../../w", "a//b"])
def test_a_weight_that_could_leave_its_folder_is_refused(scaled, name):
    specification = scaled(2).get_spec().SerializeToString()
    with pytest.raises(RuntimeError, match="which could leave its folder"):
        MLModelAsset.from_memory(specification, {name: b"x"})


def test_bytes_that_are_no_model_are_refused():
    with pytest.raises(RuntimeError, match="not a Core ML model"):
        MLModelAsset.from_memory(b"\xff\xff\xff")


def test_an_asset_from_a_path(scaled):
    model = scaled(2)
    asset = MLModelAsset.from_path(model.get_compiled_model_path())
    compiled = ct.models.CompiledMLModel.from_asset(asset)
    np.testing.assert_array_equal(compiled.predict({"x": X})["y"], 2 * X + 1)


def test_a_compiled_model_wants_arrays(scaled):
    model = scaled(2)
    compiled = ct.models.CompiledMLModel(model.get_compiled_model_path())
    with pytest.raises(RuntimeError, match="'x' is of type list; give a numpy array of float32"):
        compiled.predict({"x": X.tolist()})


def test_the_only_device_is_the_cpu():
    for devices in (
        MLComputeDevice.get_all_compute_devices(),
        ct.models.MLModel.get_available_compute_devices(),
    ):
        assert [type(device) for device in devices] == [MLCPUComputeDevice]


def test_the_structure_is_that_of_the_program(scaled):
    model = scaled(2)
    structure = MLModelStructure.load_from_path(model.get_compiled_model_path())
    main = structure.program.functions["main"]
    assert [entry.name for entry in main.inputs] == ["x"]
    assert main.block.output_names == ["y"]
    operations = {operation.operator_name: operation for operation in main.block.operations}
    assert operations.keys() == {"const", "mul", "add"}
    assert [binding.name for binding in operations["mul"].inputs["x"].bindings] == ["x"]


def test_the_structure_has_the_blocks_of_control_flow(converted):
    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.cond(
            pred=mb.greater(x=mb.squeeze(x=x), y=0.0),
            _true_fn=lambda: mb.add(x=x, y=1.0),
            _false_fn=lambda: mb.sub(x=x, y=1.0),
            name="y",
        )

    model = converted(program)
    structure = MLModelStructure.load_from_path(model.get_compiled_model_path())
    operations = structure.program.functions["main"].block.operations
    (cond,) = (operation for operation in operations if operation.operator_name == "cond")
    inner = [[op.operator_name for op in block.operations] for block in cond.blocks]
    assert ["add" in names for names in inner] == [True, False]
    assert model.predict({"x": np.array([-3], np.float32)})["y"] == -4


def test_a_plan_has_every_operation_on_the_cpu(scaled):
    model = scaled(2)
    path = model.get_compiled_model_path()
    plan = MLComputePlan.load_from_path(path, compute_units=ct.ComputeUnit.CPU_ONLY)
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if operation.operator_name == "const":
            assert usage is None
        else:
            assert isinstance(usage.preferred_compute_device, MLCPUComputeDevice)
            assert len(usage.supported_compute_devices) == 1
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        assert (cost is None) == (usage is None)


def test_the_costs_of_operations_are_their_shares_of_the_work(converted):
    @mb.program(input_specs=[mb.TensorSpec((8, 64))], opset_version=ct.target.iOS18)
    def program(x):
        small = mb.linear(x=x, weight=np.ones((16, 64), np.float32))
        large = mb.linear(x=x, weight=np.ones((64, 64), np.float32))
        return mb.reduce_sum(x=small), mb.reduce_sum(x=mb.relu(x=large))

    model = converted(program)
    path = model.get_compiled_model_path()
    plan = MLComputePlan.load_from_path(path, compute_units=ct.ComputeUnit.CPU_ONLY)
    costs = [
        (operation.operator_name, cost.weight)
        for operation in plan.model_structure.program.functions["main"].block.operations
        if (cost := plan.get_estimated_cost_for_mlprogram_operation(operation)) is not None
    ]
    assert sum(cost for _, cost in costs) == pytest.approx(1)
    linears = sorted(cost for name, cost in costs if name == "linear")
    assert 3 < linears[1] / linears[0] < 4
    assert linears[0] > 3 * max(cost for name, cost in costs if name != "linear")


def test_operations_can_be_benchmarked(scaled):
    benchmarker = MLModelBenchmarker(scaled(2))
    found = asyncio.run(benchmarker.benchmark_operation_execution(iterations=3))
    timed = [one.spec.type for one in found if one.measurement.samples]
    assert sorted(timed) == ["add", "mul"]
    assert all(sum(one.measurement.samples) > 0 for one in found if one.measurement.samples)


def test_a_compiled_model_has_its_program_as_text(weighted):
    """The lines are spelled as coremltools' own tests expect them."""
    text = Path(weighted[0].get_compiled_model_path(), "model.mil").read_text()
    blob = 'BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64))'
    name = re.search(r"weight = (\w+), x = x\)\[name", text)[1]
    assert f'tensor<fp32, [500, 3]> {name} = const()[name = string("{name}"), val = ' in text
    assert f"val = tensor<fp32, [500, 3]>({blob})];" in text
    assert "func main<ios18>(tensor<fp32, [2, 3]> x) {" in text
    assert "} -> (y);" in text


def test_the_text_of_an_older_model_gives_scalars_the_types_of_tensors(converted):
    @mb.program(input_specs=[mb.TensorSpec((2, 3))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.concat(values=[mb.mul(x=x, y=0.5), x], axis=1, name="y")

    model = converted(program, target="iOS16")
    text = Path(model.get_compiled_model_path(), "model.mil").read_text()
    assert "val = tensor<fp32, []>(0x1p-1)];" in text
    assert "val = tensor<bool, []>(false)];" in text
    assert "func main<ios16>(tensor<fp32, [2, 3]> x) {" in text
    assert re.search(r"tensor<fp32, \[2, 6\]> y = concat\(.*values = \(\w+, x\)\)", text)


def test_the_text_leaves_out_what_is_beyond_its_limit(converted, monkeypatch):
    monkeypatch.setattr("harness.shim.asset._MAX_SPELLED", 12)

    numbers = np.arange(8, dtype=np.float32)  # from 10 on, coremltools writes a weight

    @mb.program(input_specs=[mb.TensorSpec((8,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.add(x=mb.mul(x=x, y=numbers), y=numbers + 1, name="y")

    model = converted(program)
    text = Path(model.get_compiled_model_path(), "model.mil").read_text()
    assert text.count("0x1.cp+2") == 1  # 7, of the first constant alone
    assert text.count("val = tensor<fp32, [8]>(...)];") == 1
    assert text.endswith("} -> (y);\n}\n")


@pytest.mark.parametrize("sizes", [[1 << 31], [1 << 60] * 200, [1] * 17])
def test_a_structure_with_a_tensor_beyond_all_limits_is_refused(scaled, tmp_path, sizes):
    model, path = scaled(2), tmp_path / "m.mlmodelc"
    shutil.copytree(model.get_compiled_model_path(), path)
    (file,) = path.rglob("model.mlmodel")
    spec = ct.proto.Model_pb2.Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    tensor = block.operations[-1].outputs[0].type.tensorType
    tensor.rank = len(sizes)
    del tensor.dimensions[:]
    for size in sizes:
        tensor.dimensions.add().constant.size = size
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(RuntimeError, match=f"'main': a tensor has {len(sizes)} axes, the largest"):
        MLModelStructure.load_from_path(str(path))


def test_a_plan_for_other_units_says_what_cannot_be_had(scaled):
    model = scaled(2)
    path = model.get_compiled_model_path()
    with pytest.warns(RuntimeWarning, match="only a Mac can plan for a GPU or a Neural Engine"):
        MLComputePlan.load_from_path(path, compute_units=ct.ComputeUnit.CPU_AND_NE)


def test_a_plan_of_what_is_not_compiled_is_refused(scaled, tmp_path):
    scaled(2).save(str(tmp_path / "m.mlpackage"))
    with pytest.raises(RuntimeError, match="not a compiled model"):
        MLComputePlan.load_from_path(str(tmp_path / "m.mlpackage"))


def test_the_specification_version_is_lowered_to_what_is_needed(converted):
    from coremltools.libcoremlpython import _MLModelProxy

    @mb.program(input_specs=[mb.TensorSpec((2,))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.relu(x=x)

    spec = converted(program, target="iOS16").get_spec()
    spec.specificationVersion = 9
    lowered = _MLModelProxy.auto_set_specification_version(spec.SerializeToString())
    assert ct.proto.Model_pb2.Model.FromString(lowered).specificationVersion == 7


def test_our_own_core_ml_runtime_runs_through_the_stand_in(scaled):
    model = scaled(3)
    compiled = CompiledPackage(Package.from_folder(Path(model.package_path)))
    function = CoreMLFunction(compiled, "main", ["x"], ["y"], "CPU_ONLY")
    (y,) = function([torch.from_numpy(X)])
    np.testing.assert_array_equal(y.numpy(), 3 * X + 1)
    with pytest.raises(Exception, match=r"Core ML cannot predict: .*not the declared \[2, 3\]"):
        function([torch.ones(3, 3)])
