"""`coreml:cpu_only`, `coreml:cpu_and_gpu` and `coreml:cpu_and_ne`: Core ML itself, on a Mac.

A package is written to a private folder and compiled once; each function is loaded from the
compiled model through `coremltools.models.CompiledMLModel`. On other systems the stand-in that
`harness shim` installs takes the place of Core ML.
"""

from __future__ import annotations

import functools
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy
import torch

from harness.artifact import Artifact, Delegate, Package
from harness.artifact.delegate import PACKAGE
from harness.artifact.proto import feature_types
from harness.errors import ArtifactError, HarnessError
from harness.files import folder_of
from harness.pte import TensorSpec
from harness.pte.interpreter import DelegateRunner
from harness.pte.program import ProgramMethod
from harness.runtimes.base import Method, add_core_ml_ns, why_no_core_ml
from harness.shim import is_installed

# Option -> coremltools' name of the compute units, and the device that Core ML needs for them:
# without it, Core ML uses the CPU.
_UNITS = {
    "cpu_only": ("CPU_ONLY", None),
    "cpu_and_gpu": ("CPU_AND_GPU", "MLGPUComputeDevice"),
    "cpu_and_ne": ("CPU_AND_NE", "MLNeuralEngineComputeDevice"),
    "iphone": ("CPU_AND_NE", None),  # see `iphone.py`
}
_DEVICE_NAMES = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}
_DEVICES_SINCE = (14,)  # the first macOS that lists its devices
_MS = 1e6  # nanoseconds


class CoreMLRuntime:
    """Executes a .pte's Core ML delegates, or the functions of an .mlpackage, on compute units."""

    def __init__(self, option: str) -> None:
        self.name = f"coreml:{option}"
        self._units, self._device = _UNITS[option]
        # A package is compiled once while a function of it is loaded.
        self._compiled: WeakValueDictionary[Package, CompiledPackage] = WeakValueDictionary()

    def unavailable(self) -> str | None:
        """Return the reason: no Mac, no Core ML in coremltools, or no such device in this Mac."""
        if reason := why_no_core_ml():
            return reason
        try:
            devices = _devices()
        except ImportError as error:
            return f"coremltools cannot call Core ML here ({error})"
        if self._device is None or devices is None or self._device in devices:
            return None
        here = "the stand-in for Core ML" if is_installed() else "this Mac"
        return f"{here} has no {_DEVICE_NAMES[self._device]}: Core ML would use the CPU instead"

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method, or a function of an .mlpackage.

        Raises HarnessError, naming package and function, with Core ML's own reason.
        """
        return self._load(artifact, method, self._compiled, [])

    def profile(
        self, artifact: Artifact, method: str, tensors: Sequence[torch.Tensor], rounds: int
    ) -> tuple[dict[str, Any], tuple[torch.Tensor, ...]]:
        """Return the times and the placement of a method, as JSON, and the first call's results.

        Each package is compiled and loaded again. `cold load` is the first load of a function from
        the new compiled model, `cached load` the second. Each time is Core ML's own and then that
        of the call of coremltools, in milliseconds; a method's time is the sum of its functions'.
        Core ML does not tell how long it compiles.
        """
        compiled: dict[Package, CompiledPackage] = {}
        loads: list[list[CoreMLFunction]] = [[], []]
        methods = [self._load(artifact, method, compiled, functions) for functions in loads]
        results = methods[1](*tensors)
        first = [function.predicted for function in loads[1]]
        warm = []
        for _ in range(rounds):
            methods[1](*tensors)
            warm.append(_total(function.predicted for function in loads[1]))
        functions = [(one.package, one.function) for one in loads[0]]
        placement = [
            {"package": index, "function": function} | row
            for index, (package, function) in enumerate(functions)
            for row in compiled[package].placement(function, self._units)
        ]
        facts = {
            "units": self._units,
            "devices": self._devices_here(),
            "compile": sum(one.compile_ns for one in compiled.values()) / _MS,
            "cold load": _total(one.loaded for one in loads[0]),
            "cached load": _total(one.loaded for one in loads[1]),
            "first prediction": _total(first),
            "warm prediction": warm,
            "placement": placement,
        }
        return facts, results

    def _compile(self, package: Package) -> CompiledPackage:
        return CompiledPackage(package)

    def _devices_here(self) -> list[str]:
        return sorted(_DEVICE_NAMES[name] for name in _devices() or ())

    def _load(
        self,
        artifact: Artifact,
        method: str,
        compiled: MutableMapping[Package, CompiledPackage],
        functions: list[CoreMLFunction],
    ) -> Method:
        """Load a method from the compiled packages; its functions are added to `functions`."""

        def load(
            package: Package, function: str, inputs: Sequence[str], outputs: Sequence[str]
        ) -> CoreMLFunction:
            found = compiled.get(package) or compiled.setdefault(package, self._compile(package))
            functions.append(CoreMLFunction(found, function, inputs, outputs, self._units))
            return functions[-1]

        def delegate(delegate: Delegate) -> DelegateRunner:
            names = delegate.names
            package, function = delegate.bundle.package, delegate.program_function
            return load(package, function, names.input_names, names.output_names)

        if artifact.package is None:
            return ProgramMethod(artifact, method, delegate)
        described, what = artifact.package.description(method), artifact.package.what
        inputs, outputs = _specs(described.input, what), _specs(described.output, what)
        given, made = ([spec.name for spec in side] for side in (inputs, outputs))
        run = load(artifact.package, method, given, made)
        return _PackageMethod(method, inputs, outputs, run)


@dataclass(frozen=True)
class Took:
    """Nanoseconds: by Core ML's clock, None if it does not tell, and of coremltools' call."""

    core_ml: int | None
    wrapper: int


def _total(times: Iterable[Took | None]) -> list[float | None]:
    """Return the sum of times in milliseconds, by Core ML's clock and by ours."""
    found = [took for took in times if took is not None]
    told = [took.core_ml for took in found if took.core_ml is not None]
    core_ml = sum(told) / _MS if len(told) == len(found) else None
    return [core_ml, sum(took.wrapper for took in found) / _MS]


class CompiledPackage:
    """A package in a private folder, compiled by Core ML; the folder is removed with the object.

    Raises HarnessError with Core ML's reason.
    """

    def __init__(self, package: Package) -> None:
        from coremltools.models.utils import compile_model

        self.package = package
        folder = folder_of(self, "harness-coreml")
        source = folder / PACKAGE
        package.write(source)
        self.path = str(folder / "model.mlmodelc")
        start = time.perf_counter_ns()
        try:
            compile_model(str(source), self.path)
        except Exception as error:  # coremltools raises bare Exception and RuntimeError
            raise HarnessError(f"{package.what}: Core ML cannot compile it: {error}") from error
        self.compile_ns = time.perf_counter_ns() - start
        shutil.rmtree(source)

    def load(self, function: str, units: str) -> Any:
        """Load a function; return a `CompiledMLModel`, or an object with its calls."""
        import coremltools

        chosen = coremltools.ComputeUnit[units]
        return coremltools.models.CompiledMLModel(self.path, chosen, self.asked_name(function))

    def plan(self, function: str, units: str) -> Any:
        """Return the `MLComputePlan` of a loaded function."""
        import coremltools
        from coremltools.models.compute_plan import MLComputePlan

        return MLComputePlan.load_from_path(self.path, coremltools.ComputeUnit[units])

    def asked_name(self, function: str) -> str | None:
        """Return a function's name, None if Core ML must not be asked for it by name."""
        return function if self.package.is_multifunction else None

    def placement(self, function: str, units: str) -> Iterator[dict[str, Any]]:
        """Yield what Core ML plans for each operation of a function: devices and cost.

        `preferred` is None where Core ML has no plan; `cost` is the operation's share of the
        model's work, from 0 to 1, or None.
        """
        plan = self.plan(function, units)
        for operation in plan.model_structure.program.functions[function].block.operations:
            if operation.operator_name.rpartition(".")[2] == "const":
                continue
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            yield {
                "operation": operation.operator_name,
                "output": operation.outputs[0].name if operation.outputs else "",
                "preferred": None if usage is None else _device(usage.preferred_compute_device),
                "supported": []
                if usage is None
                else [_device(device) for device in usage.supported_compute_devices],
                "cost": None if cost is None else cost.weight,
            }


class CoreMLFunction:
    """One function of a package as `tensors -> tensors`, both in the order of the given names.

    Core ML's arrays hold fp16, fp32 and int32: wider floats become fp32, and all integers int32. An
    fp16 output comes out as fp32. A function's state is new with the object and advances with each
    call. `loaded` and `predicted` are the times of the load and of the last call.
    """

    def __init__(
        self,
        compiled: CompiledPackage,
        function: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        compute_units: str,
    ) -> None:
        self.package, self.function = compiled.package, function
        self._compiled = compiled  # its folder must outlive the model
        self._where = f"{compiled.package.what}, function '{function}'"
        self._input_names, self._output_names = tuple(input_names), tuple(output_names)
        start = time.perf_counter_ns()
        try:
            model = compiled.load(function, compute_units)
        except Exception as error:
            raise HarnessError(f"{self._where}: Core ML cannot load it: {error}") from error
        took = time.perf_counter_ns() - start
        self._model = model
        # A compiled model has no public name for the durations that an MLModel tells.
        self.loaded = Took(model._proxy.get_load_duration_in_nano_seconds(), took)
        add_core_ml_ns(self.loaded.core_ml)
        self.predicted: Took | None = None
        states = compiled.package.description(function).state
        self._state = model.make_state() if states else None

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Predict once; raises HarnessError when Core ML fails or leaves out an output."""
        arrays = [_to_array(tensor) for tensor in tensors]
        inputs = dict(zip(self._input_names, arrays, strict=True))
        # Only with a state: older macOS versions refuse the argument.
        state = () if self._state is None else (self._state,)
        start = time.perf_counter_ns()
        try:
            outputs = self._model.predict(inputs, *state)
        except Exception as error:
            raise HarnessError(f"{self._where}: Core ML cannot predict: {error}") from error
        took = time.perf_counter_ns() - start
        self.predicted = Took(self._model._proxy.get_last_predict_duration_in_nano_seconds(), took)
        add_core_ml_ns(self.predicted.core_ml)
        missing = [name for name in self._output_names if name not in outputs]
        if missing:
            raise HarnessError(
                f"{self._where}: Core ML returned no '{missing[0]}', which metadata.json names "
                f"(it returned {', '.join(sorted(outputs))})"
            )
        return [_to_tensor(outputs[name]) for name in self._output_names]


@dataclass
class _PackageMethod:
    """A function of an .mlpackage, called in the order of its declared inputs."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: CoreMLFunction

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(tensors) != len(self.inputs):
            raise HarnessError(
                f"function '{self.name}': called with {len(tensors)} inputs, it has "
                f"{len(self.inputs)}"
            )
        return tuple(self.run(tensors))


def _specs(features: Any, what: str) -> tuple[TensorSpec, ...]:
    specs = []
    for feature in features:
        array = feature.type.multiArrayType
        if feature.type.WhichOneof("Type") != "multiArrayType" or (
            array.dataType not in feature_types()
        ):
            raise ArtifactError(
                f"{what}: '{feature.name}' is not an array; only arrays can be passed"
            )
        specs.append(TensorSpec(feature.name, tuple(array.shape), feature_types()[array.dataType]))
    return tuple(specs)


def _to_array(tensor: torch.Tensor) -> numpy.ndarray:
    if tensor.dtype not in (torch.float16, torch.float32):
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32)
    return numpy.ascontiguousarray(tensor.detach().numpy())


def _to_tensor(array: Any) -> torch.Tensor:
    # A copy: Core ML may use the memory again for the next prediction.
    return torch.from_numpy(numpy.array(array, copy=True))


def _device(device: object) -> str:
    """Return the name of a device of coremltools."""
    return _DEVICE_NAMES.get(type(device).__name__, type(device).__name__)


@functools.cache
def _devices() -> frozenset[str] | None:
    """Return the class names of the compute devices here, None if this Mac cannot list them.

    Raises ImportError if coremltools has no native part.
    """
    import coremltools.libcoremlpython  # noqa: F401
    from coremltools.models.compute_device import MLComputeDevice

    version = platform.mac_ver()[0]  # empty where the stand-in answers
    if version and tuple(map(int, version.split("."))) < _DEVICES_SINCE:
        return None
    return frozenset(type(d).__name__ for d in MLComputeDevice.get_all_compute_devices())
