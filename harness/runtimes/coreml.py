"""`coreml:cpu_only`, `coreml:cpu_and_gpu` and `coreml:cpu_and_ne`: Core ML itself, on a Mac.

A method writes a delegate's package to a private folder, loads it through
`coremltools.models.MLModel`, and removes it at its end. On other systems the stand-in that
`harness shim` installs takes the place of Core ML.
"""

from __future__ import annotations

import functools
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from harness.artifact import Artifact, Delegate, Package
from harness.artifact.delegate import PACKAGE
from harness.artifact.package import described
from harness.artifact.proto import feature_types
from harness.errors import ArtifactError, HarnessError
from harness.pte import TensorSpec
from harness.pte.interpreter import DelegateRunner
from harness.pte.program import ProgramMethod
from harness.runtimes.base import Method
from harness.shim import is_installed

# Option -> coremltools' name of the compute units, and the device that Core ML needs for them:
# without it, Core ML uses the CPU.
_UNITS = {
    "cpu_only": ("CPU_ONLY", None),
    "cpu_and_gpu": ("CPU_AND_GPU", "MLGPUComputeDevice"),
    "cpu_and_ne": ("CPU_AND_NE", "MLNeuralEngineComputeDevice"),
}
_DEVICE_NAMES = {"MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}
_DEVICES_SINCE = (14,)  # the first macOS that lists its devices


class CoreMLRuntime:
    """Executes a .pte's Core ML delegates, or the functions of an .mlpackage, on compute units."""

    def __init__(self, option: str) -> None:
        self.name = f"coreml:{option}"
        self._units, self._device = _UNITS[option]

    def unavailable(self) -> str | None:
        """Return the reason: no Mac, no Core ML in coremltools, or no such device in this Mac."""
        if platform.system() != "Darwin" and not is_installed():
            return f"Core ML is part of macOS, and this is {platform.system()}"
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
        if artifact.package is not None:
            return _PackageMethod(artifact.path, artifact.package, method, self._units)
        return ProgramMethod(artifact, method, self._delegate)

    def _delegate(self, delegate: Delegate) -> DelegateRunner:
        folder = tempfile.TemporaryDirectory(prefix="harness-coreml-")
        return CoreMLDelegate(
            _write_package(delegate.bundle.package, Path(folder.name)),
            delegate.function,
            delegate.names.input_names,
            delegate.names.output_names,
            self._units,
            owned_folder=folder,
        )


class CoreMLDelegate:
    """One function of a package as `tensors -> tensors`, both in the order of the given names.

    Core ML's arrays hold fp16, fp32 and int32: wider floats become fp32, and all integers int32. An
    fp16 output comes out as fp32. A function's state is new with the object and advances with each
    call. `owned_folder` is removed with the object.
    """

    def __init__(
        self,
        package_dir: Path,
        function_name: str | None,
        input_names: Sequence[str],
        output_names: Sequence[str],
        compute_units: str,
        model_class: Callable[..., Any] | None = None,
        owned_folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self._where = f"{package_dir.name}, function '{function_name or 'main'}'"
        self._folder = owned_folder
        self._input_names = tuple(input_names)
        self._output_names = tuple(output_names)
        self._model = _load_model(
            package_dir, function_name, compute_units, model_class, self._where
        )
        states = _describes_states(self._model.get_spec().description, function_name)
        self._state = self._model.make_state() if states else None

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Predict once; raises HarnessError when Core ML fails or leaves out an output."""
        arrays = [_to_array(tensor) for tensor in tensors]
        inputs = dict(zip(self._input_names, arrays, strict=True))
        try:
            # Only with a state: older macOS versions refuse the argument.
            state = () if self._state is None else (self._state,)
            outputs = self._model.predict(inputs, *state)
        except Exception as error:  # coremltools raises bare Exception and RuntimeError
            raise HarnessError(f"{self._where}: Core ML cannot predict: {error}") from error
        missing = [name for name in self._output_names if name not in outputs]
        if missing:
            raise HarnessError(
                f"{self._where}: Core ML returned no '{missing[0]}', which metadata.json names "
                f"(it returned {', '.join(sorted(outputs))})"
            )
        return [_to_tensor(outputs[name]) for name in self._output_names]


class _PackageMethod:
    """A function of an .mlpackage, called in the order of its declared inputs."""

    def __init__(self, path: Path, package: Package, function: str, units: str) -> None:
        self.name = function
        self.inputs, self.outputs = _declared(package, function)
        self._run = CoreMLDelegate(
            path,
            function if package.is_multifunction else None,
            [spec.name for spec in self.inputs],
            [spec.name for spec in self.outputs],
            units,
        )

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(tensors) != len(self.inputs):
            raise HarnessError(
                f"function '{self.name}': called with {len(tensors)} inputs, it has "
                f"{len(self.inputs)}"
            )
        return tuple(self._run(tensors))


def _declared(
    package: Package, function: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return a function's inputs and outputs from the package's description."""
    description = package.description(function)
    return _specs(description.input, package.what), _specs(description.output, package.what)


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


def _write_package(package: Package, folder: Path) -> Path:
    """Write a package's files into an empty folder; their names were checked when it was read."""
    root = folder / PACKAGE
    for name, data in package.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
    return root


def _load_model(
    package_dir: Path,
    function_name: str | None,
    compute_units: str,
    model_class: Callable[..., Any] | None,
    where: str,
) -> Any:
    import coremltools

    options: dict[str, Any] = {"compute_units": getattr(coremltools.ComputeUnit, compute_units)}
    if function_name is not None:  # a single-function package must not be asked by name
        options["function_name"] = function_name
    try:
        model = (model_class or coremltools.models.MLModel)(str(package_dir), **options)
    except Exception as error:  # coremltools raises bare Exception and RuntimeError
        raise HarnessError(f"{where}: Core ML cannot load it: {error}") from error
    if model.__proxy__ is None:  # coremltools turns Core ML's refusal into a warning
        reason = getattr(model, "_framework_error", None) or "no reason given"
        raise HarnessError(f"{where}: Core ML cannot load it: {reason}")
    return model


def _describes_states(description: Any, function_name: str | None) -> bool:
    function = function_name or description.defaultFunctionName
    return len(described(description, function).state) > 0


def _to_array(tensor: torch.Tensor) -> numpy.ndarray:
    if tensor.dtype not in (torch.float16, torch.float32):
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32)
    return numpy.ascontiguousarray(tensor.detach().numpy())


def _to_tensor(array: Any) -> torch.Tensor:
    # A copy: Core ML may use the memory again for the next prediction.
    return torch.from_numpy(numpy.array(array, copy=True))


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
