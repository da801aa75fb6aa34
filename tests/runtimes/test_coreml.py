"""The calls of CompiledMLModel. Core ML itself runs on a Mac only: elsewhere some are skipped.

`FakeModel` replaces `coremltools.models.CompiledMLModel`: it records the call and returns the
results of coremltools, with fp16 as fp32 arrays.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import coremltools
import numpy
import pytest
import torch

from harness.artifact import Package
from harness.errors import HarnessError
from harness.pte import TensorSpec
from harness.runtimes import coreml
from harness.runtimes.coreml import CompiledPackage, CoreMLFunction, CoreMLRuntime, Took


class FakeModel:
    made: ClassVar[list[FakeModel]] = []
    outputs: ClassVar[dict[str, Any]] = {}
    refuses: ClassVar[bool] = False

    def __init__(self, path: str, units: Any, function: str | None) -> None:
        if self.refuses:
            raise RuntimeError("compiler error: no such op")
        self.path, self.units, self.function, self.calls = path, units, function, []
        self._proxy = SimpleNamespace(
            get_load_duration_in_nano_seconds=lambda: 5,
            get_last_predict_duration_in_nano_seconds=lambda: len(self.calls),
        )
        FakeModel.made.append(self)

    def make_state(self) -> str:
        return "a state"

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        self.calls.append((data, state))
        return self.outputs


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeModel]]:
    for name, value in {"made": [], "refuses": False}.items():
        monkeypatch.setattr(FakeModel, name, value)
    outputs = {"b": numpy.ones((1, 2), numpy.float32), "a": numpy.zeros((1,), numpy.float32)}
    monkeypatch.setattr(FakeModel, "outputs", outputs)
    monkeypatch.setattr(coremltools.models, "CompiledMLModel", FakeModel)
    yield FakeModel


def loaded(
    function: str = "main",
    inputs: tuple[str, ...] = ("x", "n"),
    several: bool = False,
    state: tuple[str, ...] = (),
) -> CoreMLFunction:
    package = SimpleNamespace(
        what="model.mlpackage",
        is_multifunction=several,
        description=lambda name: SimpleNamespace(state=state),
    )
    compiled: Any = CompiledPackage.__new__(CompiledPackage)
    compiled.package, compiled.path = package, "/nowhere/model.mlmodelc"
    return CoreMLFunction(compiled, function, inputs, ("a", "b"), "CPU_AND_NE")


def test_tensors_go_in_by_name_in_the_given_order_and_come_out_in_it() -> None:
    run = loaded()
    results = run([torch.ones(2, 3, dtype=torch.float16), torch.tensor([7], dtype=torch.int64)])
    ((data, state),) = FakeModel.made[0].calls
    assert list(data) == ["x", "n"] and state is None
    assert (data["x"].dtype, data["x"].shape) == (numpy.float16, (2, 3))
    assert (data["n"].dtype, data["n"].tolist()) == (numpy.int32, [7])
    assert [tuple(result.shape) for result in results] == [(1,), (1, 2)]
    assert [result.dtype for result in results] == [torch.float32, torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floats_that_core_ml_has_no_arrays_for_go_in_as_fp32(dtype: torch.dtype) -> None:
    loaded(inputs=("x",))([torch.ones(2, dtype=dtype)])
    assert FakeModel.made[0].calls[0][0]["x"].dtype == numpy.float32


def test_a_strided_tensor_goes_in_contiguous() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    loaded(inputs=("x",))([tensor])
    array = FakeModel.made[0].calls[0][0]["x"]
    assert array.flags["C_CONTIGUOUS"] and array.tolist() == tensor.tolist()


def test_results_are_copies_that_the_next_prediction_cannot_change() -> None:
    before = loaded(inputs=())([])
    FakeModel.outputs["b"][:] = 5
    assert before[1].tolist() == [[1, 1]]


def test_a_function_is_named_for_multifunction_packages_only() -> None:
    loaded("prefill", several=True)
    loaded("main")
    named, unnamed = FakeModel.made
    assert (named.function, unnamed.function) == ("prefill", None)
    assert named.units is coremltools.ComputeUnit.CPU_AND_NE
    assert named.path == "/nowhere/model.mlmodelc"


@pytest.mark.parametrize("several", [False, True])
def test_a_state_is_made_once_and_passed_each_time(fake: type[FakeModel], several: bool) -> None:
    run = loaded(inputs=(), several=several, state=("k_cache",))
    run([])
    run([])
    assert [state for _, state in fake.made[0].calls] == ["a state", "a state"]


def test_times_are_core_mls_own_beside_those_of_the_call() -> None:
    run = loaded(inputs=())
    assert run.loaded.core_ml == 5 < run.loaded.wrapper and run.predicted is None
    run([])
    run([])
    assert run.predicted is not None and run.predicted.core_ml == 2 < run.predicted.wrapper
    both = [Took(1_000_000, 3_000_000), Took(2_000_000, 4_000_000)]
    assert coreml._total(both) == [3.0, 7.0]
    assert coreml._total([*both, Took(None, 1_000_000)]) == [None, 8.0]


def test_core_mls_refusal_to_load_is_an_error_with_its_reason(fake: type[FakeModel]) -> None:
    fake.refuses = True
    with pytest.raises(HarnessError, match="'prefill': Core ML cannot load it: compiler error"):
        loaded("prefill")


def test_a_failed_prediction_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeModel, data: object, state: object = None) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(FakeModel, "predict", fail)
    with pytest.raises(HarnessError, match="Core ML cannot predict: shape mismatch"):
        loaded(inputs=())([])


def test_an_output_that_is_left_out_is_named(fake: type[FakeModel]) -> None:
    del fake.outputs["a"]
    with pytest.raises(HarnessError, match="returned no 'a'"):
        loaded(inputs=())([])


def test_a_package_is_written_whole_compiled_and_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"Manifest.json": b"{}", "Data/com.apple.CoreML/weights/weight.bin": b"12"}
    package = Package({name: memoryview(data) for name, data in files.items()}, "test")
    sources = []

    def compile_model(source: str, target: str) -> None:
        sources.append({name: (Path(source) / name).read_bytes() for name in files})
        Path(target).mkdir()

    monkeypatch.setattr("coremltools.models.utils.compile_model", compile_model)
    compiled = CompiledPackage(package)
    folder = Path(compiled.path).parent
    assert sources == [files] and [path.name for path in folder.iterdir()] == ["model.mlmodelc"]
    del compiled
    gc.collect()
    assert not folder.exists()


def test_core_mls_refusal_to_compile_is_an_error_that_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(source: str, target: str) -> None:
        raise RuntimeError("invalid operation")

    monkeypatch.setattr("coremltools.models.utils.compile_model", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    package = Package({"Manifest.json": memoryview(b"{}")}, "a package")
    with pytest.raises(HarnessError, match="a package: Core ML cannot compile it: invalid oper"):
        CompiledPackage(package)
    gc.collect()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["cpu_only", "cpu_and_gpu", "cpu_and_ne"])
def test_elsewhere_it_is_unavailable_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(coreml.platform, "system", lambda: "Linux")
    runtime = CoreMLRuntime(option)
    assert runtime.name == f"coreml:{option}"
    assert "Core ML is part of macOS" in (runtime.unavailable() or "")


@pytest.mark.parametrize(
    ("option", "devices", "reason"),
    [
        ("cpu_only", {"MLCPUComputeDevice"}, None),
        ("cpu_and_ne", {"MLCPUComputeDevice"}, "this Mac has no Neural Engine"),
        ("cpu_and_gpu", {"MLCPUComputeDevice"}, "this Mac has no GPU"),
        ("cpu_and_ne", {"MLCPUComputeDevice", "MLNeuralEngineComputeDevice"}, None),
        ("cpu_and_ne", None, None),
    ],
)
def test_on_a_mac_a_missing_device_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, option: str, devices: set[str] | None, reason: str | None
) -> None:
    monkeypatch.setattr(coreml.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(coreml, "_devices", lambda: devices)
    found = CoreMLRuntime(option).unavailable()
    assert found is None if reason is None else found is not None and reason in found


def test_on_a_mac_without_coremltools_native_part_that_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'coremltools.libcoremlpython'")

    monkeypatch.setattr(coreml.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(coreml, "_devices", missing)
    assert "libcoremlpython" in (CoreMLRuntime("cpu_only").unavailable() or "")


def test_an_old_mac_that_cannot_list_its_devices_has_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("coremltools.libcoremlpython", reason="Core ML is not here")
    monkeypatch.setattr(coreml.platform, "mac_ver", lambda: ("13.6.1", ("", "", ""), "arm64"))
    assert coreml._devices.__wrapped__() is None


def test_a_package_takes_as_many_tensors_as_it_has_inputs() -> None:
    method = coreml._PackageMethod("main", (TensorSpec("x", (2,), "float32"),), (), loaded())
    with pytest.raises(HarnessError, match="function 'main': called with 0 inputs, it has 1"):
        method()


def test_an_image_is_refused_by_name() -> None:
    image = coremltools.proto.FeatureTypes_pb2.FeatureType(imageType={"width": 4, "height": 4})
    feature = coremltools.proto.Model_pb2.FeatureDescription(name="picture", type=image)
    with pytest.raises(HarnessError, match="a.mlpackage: 'picture' is not an array"):
        coreml._specs([feature], "a.mlpackage")
