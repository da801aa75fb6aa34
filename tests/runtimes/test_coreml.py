"""The calls of MLModel. Core ML itself runs on a Mac only: elsewhere the last test is skipped.

`FakeModel` replaces `coremltools.models.MLModel`: it records the call and returns the results of
coremltools, with fp16 as fp32 arrays.
"""

from __future__ import annotations

import gc
import platform
import tempfile
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
from harness.runtimes import coreml
from harness.runtimes.coreml import CoreMLDelegate, CoreMLRuntime


class FakeModel:
    made: ClassVar[list[FakeModel]] = []
    states: ClassVar[list[str]] = []
    functions: ClassVar[list[str]] = []
    outputs: ClassVar[dict[str, Any]] = {}
    refuses: ClassVar[bool] = False

    def __init__(self, path: str, **options: Any) -> None:
        self.path, self.options, self.calls = path, options, []
        self.__proxy__ = None if self.refuses else object()
        self._framework_error = RuntimeError("compiler error: no such op") if self.refuses else None
        FakeModel.made.append(self)

    def get_spec(self) -> Any:
        def described(name: str) -> SimpleNamespace:
            return SimpleNamespace(name=name, state=self.states)

        functions = [described(name) for name in self.functions]
        state = [] if functions else self.states
        return SimpleNamespace(
            description=SimpleNamespace(functions=functions, state=state, defaultFunctionName="")
        )

    def make_state(self) -> str:
        return "a state"

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        self.calls.append((data, state))
        return self.outputs


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeModel]]:
    for name, value in {"made": [], "states": [], "functions": [], "refuses": False}.items():
        monkeypatch.setattr(FakeModel, name, value)
    outputs = {"b": numpy.ones((1, 2), numpy.float32), "a": numpy.zeros((1,), numpy.float32)}
    monkeypatch.setattr(FakeModel, "outputs", outputs)
    yield FakeModel


def delegate(function: str | None = None, inputs: tuple[str, ...] = ("x", "n")) -> CoreMLDelegate:
    package = Path("/nowhere/model.mlpackage")
    return CoreMLDelegate(package, function, inputs, ("a", "b"), "CPU_AND_NE", FakeModel)


def test_tensors_go_in_by_name_in_the_given_order_and_come_out_in_it() -> None:
    run = delegate()
    results = run([torch.ones(2, 3, dtype=torch.float16), torch.tensor([7], dtype=torch.int64)])
    ((data, state),) = FakeModel.made[0].calls
    assert list(data) == ["x", "n"] and state is None
    assert (data["x"].dtype, data["x"].shape) == (numpy.float16, (2, 3))
    assert (data["n"].dtype, data["n"].tolist()) == (numpy.int32, [7])
    assert [tuple(result.shape) for result in results] == [(1,), (1, 2)]
    assert [result.dtype for result in results] == [torch.float32, torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floats_that_core_ml_has_no_arrays_for_go_in_as_fp32(dtype: torch.dtype) -> None:
    run = delegate(inputs=("x",))
    run([torch.ones(2, dtype=dtype)])
    assert FakeModel.made[0].calls[0][0]["x"].dtype == numpy.float32


def test_a_strided_tensor_goes_in_contiguous() -> None:
    run = delegate(inputs=("x",))
    tensor = torch.arange(6.0).view(2, 3).t()
    run([tensor])
    array = FakeModel.made[0].calls[0][0]["x"]
    assert array.flags["C_CONTIGUOUS"] and array.tolist() == tensor.tolist()


def test_results_are_copies_that_the_next_prediction_cannot_change() -> None:
    run = delegate(inputs=())
    before = run([])
    FakeModel.outputs["b"][:] = 5
    assert before[1].tolist() == [[1, 1]]


def test_a_function_is_named_for_multifunction_packages_only() -> None:
    delegate("prefill")
    delegate(None)
    named, unnamed = FakeModel.made
    assert named.options["function_name"] == "prefill"
    assert "function_name" not in unnamed.options
    assert named.options["compute_units"] is coremltools.ComputeUnit.CPU_AND_NE
    assert named.path == "/nowhere/model.mlpackage"


@pytest.mark.parametrize("functions", [[], ["forward", "prefill"]])
def test_a_state_is_made_once_and_passed_each_time(
    fake: type[FakeModel], functions: list[str]
) -> None:
    fake.states, fake.functions = ["k_cache"], functions
    run = delegate("prefill" if functions else None, inputs=())
    run([])
    run([])
    assert [state for _, state in fake.made[0].calls] == ["a state", "a state"]


def test_core_mls_refusal_to_load_is_an_error_with_its_reason(fake: type[FakeModel]) -> None:
    fake.refuses = True
    with pytest.raises(HarnessError, match="'prefill': Core ML cannot load it: compiler error"):
        delegate("prefill")


def test_a_failed_prediction_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeModel, data: object, state: object = None) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(FakeModel, "predict", fail)
    with pytest.raises(HarnessError, match="Core ML cannot predict: shape mismatch"):
        delegate(inputs=())([])


def test_an_output_that_is_left_out_is_named(fake: type[FakeModel]) -> None:
    del fake.outputs["a"]
    with pytest.raises(HarnessError, match="returned no 'a'"):
        delegate(inputs=())([])


def test_a_package_is_written_whole_and_removed_with_its_delegate() -> None:
    files = {"Manifest.json": b"{}", "Data/com.apple.CoreML/weights/weight.bin": b"12"}
    package = Package({name: memoryview(data) for name, data in files.items()}, "test")
    folder = tempfile.TemporaryDirectory()
    root = coreml._write_package(package, Path(folder.name))
    assert root.name == "model.mlpackage"
    for name, data in files.items():
        assert (root / name).read_bytes() == data
    run = CoreMLDelegate(root, None, (), (), "CPU_ONLY", FakeModel, owned_folder=folder)
    assert root.exists()
    del run, folder
    gc.collect()
    assert not root.exists()


@pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac has Core ML")
@pytest.mark.parametrize("option", ["cpu_only", "cpu_and_gpu", "cpu_and_ne"])
def test_elsewhere_it_is_unavailable_with_its_reason(option: str) -> None:
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
