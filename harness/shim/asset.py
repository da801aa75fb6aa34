"""Opens models from files and from memory; describes their structure, plan and devices.

The stand-in's compiled model (`.mlmodelc`) is a folder with the package's files and a note. Only
Core ML can load a model that Core ML compiled. The rules of specification versions come from
coremltools' `Model.proto`.

coremltools wraps the other objects as `MLModelStructure`, `MLComputePlan` and `MLComputeDevice`.
The stand-in has one device, the CPU, and runs every operation on it. Only a Mac can tell where Core
ML would place an operation, and at which cost.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from harness.artifact import Package
from harness.artifact.files import checked_path
from harness.artifact.package import DATA, MANIFEST, MODEL_PATH, SPECIFICATION
from harness.artifact.proto import feature_types, parse_model
from harness.errors import ArtifactError, HarnessError
from harness.files import private_folder, token

NEWEST_VERSION = 10
_OPSETS = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}
_ARRAY_NEEDS = {"float16": 7, "int8": 10}
_STATES = _SEVERAL_FUNCTIONS = 9

COMPILED = ".mlmodelc"
_NOTE = "compiled-by-harness.txt"
_NOTE_TEXT = (
    "Core ML did not compile this model and cannot load it. The folder holds the files of an\n"
    ".mlpackage for the stand-in of coreml-llm-harness. On a Mac, compile the .mlpackage itself.\n"
)
_OPENED: WeakValueDictionary[tuple[object, ...], Package] = WeakValueDictionary()


class ModelAssetProxy:
    """A model that can be loaded: a package, from files or from memory."""

    def __init__(self, package: Package) -> None:
        self.package = package


def open_model(path: str) -> Package:
    """Open an .mlpackage, or a compiled model of the stand-in.

    Opening a package again while it is open returns the same object: its functions share their
    weights. Raises ArtifactError for anything else.
    """
    folder = Path(path)
    _refuse_foreign(folder)
    package = Package.from_folder(folder)
    key = (str(folder.resolve()), *_stamps(folder, package))
    package = _OPENED.setdefault(key, package)
    for name in package.files:
        _ = package.files[name]  # mapped now: the folder may be deleted while the model is in use
    return package


def open_compiled(path: str) -> Package:
    """Open a compiled model of the stand-in; raises ArtifactError for anything else."""
    if not path.rstrip("/").endswith(COMPILED):
        raise ArtifactError(
            f"{path}: not a compiled model ({COMPILED}); give a path that "
            "get_compiled_model_path() or coremltools.models.utils.compile_model() returned"
        )
    return open_model(path)


def compile_model(path: str) -> str:
    """Compile the model at `path` for the stand-in; return the new folder.

    The caller moves or deletes the folder, which lies directly among the temporary files: nothing
    is left around it. Raises ArtifactError when the model is not an ML Program.
    """
    source = Path(path)
    package = package_of_bytes(source.read_bytes()) if source.is_file() else open_model(path)
    with private_folder("harness-compiled") as folder:
        made = write_compiled(package, folder, source)
        return str(made.rename(folder.parent / f"{source.stem}.{token()}{COMPILED}"))


def write_compiled(package: Package, folder: Path, source: Path) -> Path:
    """Write a package below `folder` as a compiled model, named after its source."""
    _ = package.model  # raises ArtifactError if it cannot be parsed
    root = folder / f"{source.stem}{COMPILED}"
    package.write(root)
    (root / _NOTE).write_text(_NOTE_TEXT)
    return root


def package_of_bytes(specification: bytes, weights: Mapping[str, bytes] | None = None) -> Package:
    """Return a package of a specification and of weight files by name ("weights/weight.bin").

    Raises ArtifactError for a name outside the folder to which the package is written.
    """
    item = {"path": SPECIFICATION.removeprefix("Data/")}
    manifest = {"itemInfoEntries": {"model": item}, "rootModelIdentifier": "model"}
    files = {
        MANIFEST: json.dumps(manifest).encode(),
        SPECIFICATION: specification,
    }
    for name, data in (weights or {}).items():
        below = checked_path(name.removeprefix(MODEL_PATH))
        files["/".join((DATA, *below))] = data
    views = {name: memoryview(data) for name, data in files.items()}
    return Package(views, "the model in memory")


def asset_of_path(path: str) -> ModelAssetProxy:
    """Return the asset of a compiled model."""
    with as_runtime_error():
        return ModelAssetProxy(open_compiled(path))


def asset_of_memory(specification: bytes, weights: Mapping[str, bytes]) -> ModelAssetProxy:
    """Return the asset of a model in memory."""
    with as_runtime_error():
        package = package_of_bytes(specification, weights)
        _ = package.model
        return ModelAssetProxy(package)


def _refuse_foreign(folder: Path) -> None:
    if folder.suffix == COMPILED and folder.is_dir() and not (folder / _NOTE).exists():
        raise ArtifactError(
            f"{folder}: Core ML compiled it, and only Core ML can load it; "
            "load the .mlpackage from which it was compiled"
        )
    if folder.suffix == ".mlmodel" and folder.is_file():
        raise ArtifactError(
            f"{folder}: a model in one file; only an ML Program in an .mlpackage can be executed"
        )


def _stamps(folder: Path, package: Package) -> list[object]:
    """Return a key that distinguishes a package from a later one at the same path.

    It leaves out the manifest, which coremltools writes again whenever it opens a package.
    """
    stamps: list[object] = []
    for name in sorted(package.files.keys() - {MANIFEST}):
        found = (folder / name).stat()
        stamps.append((name, found.st_ino, found.st_size, found.st_mtime_ns))
    return stamps


def with_lowest_version(specification: bytes) -> bytes:
    """Return a model with the lowest version that supports its opset, arrays, states and functions.

    Raises ArtifactError unless it is an ML Program of a known opset.
    """
    if not isinstance(specification, bytes):
        raise TypeError(f"a model is bytes, not {type(specification).__name__}")
    model = parse_model(memoryview(specification), "the model in memory")
    model.specificationVersion = max(_needs(model))
    data: bytes = model.SerializeToString()
    return data


def _needs(model: Any) -> list[int]:
    opsets = [function.opset for function in model.mlProgram.functions.values()]
    unknown = set(opsets) - _OPSETS.keys()
    if unknown or not opsets:
        raise ArtifactError(f"the model in memory: no known opset ({', '.join(unknown) or 'none'})")
    needs = [_OPSETS[opset] for opset in opsets]
    if model.description.functions:
        needs.append(_SEVERAL_FUNCTIONS)
    for description in (model.description, *model.description.functions):
        if description.state:
            needs.append(_STATES)
        for feature in (*description.input, *description.output):
            array = feature.type.multiArrayType
            needs.append(_ARRAY_NEEDS.get(feature_types().get(array.dataType, ""), 0))
    return needs


@contextmanager
def as_runtime_error() -> Iterator[None]:
    """Turn a HarnessError into a RuntimeError: coremltools catches no other."""
    try:
        yield
    except HarnessError as error:
        raise RuntimeError(str(error)) from error


class CPUDeviceProxy:
    """The CPU."""


class GPUDeviceProxy:
    """A GPU; the stand-in has none."""


class NeuralEngineDeviceProxy:
    """A Neural Engine; the stand-in has none."""

    def get_total_core_count(self) -> int:
        """Raise RuntimeError, because the stand-in has no Neural Engine."""
        raise RuntimeError(
            "this machine has no Neural Engine; the stand-in for Core ML computes on the CPU"
        )


def devices() -> list[Any]:
    """Return the compute devices in coremltools' wrappers."""
    from coremltools.models.compute_device import MLCPUComputeDevice

    return [MLCPUComputeDevice(CPUDeviceProxy())]


class OperationProxy:
    """The proxy of an operation in a model's structure."""

    def __init__(self, type_: str) -> None:
        self.type = type_


class LayerProxy:
    """A layer of a neural network; the stand-in does not read neural networks."""


def model_structure(package: Package) -> Any:
    """Return the structure of a package; raises ArtifactError if it is not an ML Program."""
    from coremltools.models import compute_plan as ct

    functions = {
        name: ct.MLModelStructureProgramFunction(
            _named(message.inputs), _block(package.operations(name))
        )
        for name, message in package.functions.items()
    }
    return ct.MLModelStructure(None, ct.MLModelStructureProgram(functions), None)


def _block(message: Any) -> Any:
    from coremltools.models import compute_plan as ct

    operations = [_operation(operation) for operation in message.operations]
    return ct.MLModelStructureProgramBlock(
        _named(message.inputs), operations, list(message.outputs)
    )


def _operation(message: Any) -> Any:
    from coremltools.models import compute_plan as ct

    return ct.MLModelStructureProgramOperation(
        inputs={
            name: ct.MLModelStructureProgramArgument([_binding(b) for b in argument.arguments])
            for name, argument in message.inputs.items()
        },
        operator_name=message.type,
        outputs=_named(message.outputs),
        blocks=[_block(block) for block in message.blocks],
        __proxy__=OperationProxy(message.type),
    )


def _binding(message: Any) -> Any:
    from coremltools.models import compute_plan as ct

    if message.WhichOneof("binding") == "name":
        return ct.MLModelStructureProgramBinding(message.name, None)
    return ct.MLModelStructureProgramBinding(None, ct.MLModelStructureProgramValue())


def _named(messages: Iterable[Any]) -> list[Any]:
    from coremltools.models import compute_plan as ct

    return [
        ct.MLModelStructureProgramNamedValueType(
            message.name, ct.MLModelStructureProgramValueType()
        )
        for message in messages
    ]


class ComputePlanProxy:
    """The plan of one package, or the base of coremltools' plan for a remote device."""

    def __init__(self, package: Package | None = None, compute_units: str = "CPU_ONLY") -> None:
        self._structure = None if package is None else model_structure(package)
        if compute_units != "CPU_ONLY":
            warnings.warn(
                f"compute units {compute_units} were requested; only a Mac can plan for a GPU or "
                "a Neural Engine: this plan places every operation on the CPU",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def model_structure(self) -> Any:
        """The `MLModelStructure` whose operations the plan describes."""
        return self._structure

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """Return the CPU as preferred and only device; None for a constant, which has none."""
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        if operation.operator_name == "const":
            return None
        here = devices()
        return MLComputePlanDeviceUsage(here[0], here)

    def get_compute_device_usage_for_neuralnetwork_layer(self, layer: Any) -> None:
        """Return None, because the stand-in does not load neural networks."""
        return None

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> None:
        """Return None, as Core ML does without an estimate."""
        return None
