"""The structure and the compute plan of an ML Program, and the compute devices.

coremltools wraps these objects as `MLModelStructure`, `MLComputePlan` and `MLComputeDevice`. The
stand-in has one device, the CPU, and runs every operation on it. Only a Mac can tell where Core ML
would place an operation, and at which cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from harness.artifact import Package


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
