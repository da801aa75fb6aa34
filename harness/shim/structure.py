"""The structure and the compute plan of an ML Program, and the compute devices.

coremltools wraps these objects as `MLModelStructure`, `MLComputePlan` and `MLComputeDevice`. The
stand-in has one device, the CPU, and runs every operation on it. Where Core ML would place an
operation, and at which cost, only a Mac can say.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from harness.artifact import Package


class CPUDeviceProxy:
    """The CPU."""


class GPUDeviceProxy:
    """A GPU; none is found here."""


class NeuralEngineDeviceProxy:
    """A Neural Engine; none is found here."""

    def get_total_core_count(self) -> int:
        """Raise RuntimeError: there is none whose cores could be counted."""
        raise RuntimeError(
            "there is no Neural Engine here; the stand-in for Core ML computes on the CPU"
        )


def devices() -> list[Any]:
    """Return the compute devices, as coremltools wraps them."""
    from coremltools.models.compute_device import MLCPUComputeDevice

    return [MLCPUComputeDevice(CPUDeviceProxy())]


class OperationProxy:
    """Stands in an operation's structure for the operation itself."""

    def __init__(self, type_: str) -> None:
        self.type = type_


class LayerProxy:
    """A layer of a neural network; the stand-in reads none."""


def model_structure(package: Package) -> Any:
    """Return the structure of a package's functions; raises ArtifactError for no ML Program."""
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
    """The plan of one package; without one, a base for coremltools' plan of a remote device."""

    def __init__(self, package: Package | None = None, compute_units: str = "CPU_ONLY") -> None:
        self._structure = None if package is None else model_structure(package)
        if compute_units != "CPU_ONLY":
            warnings.warn(
                f"compute units {compute_units} were asked for; placement on a GPU or a Neural "
                "Engine can be had on a Mac only: this plan has every operation on the CPU",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def model_structure(self) -> Any:
        """The `MLModelStructure` whose operations can be asked for."""
        return self._structure

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """Return the CPU as preferred and only device; None for a constant, which runs nowhere."""
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        if operation.operator_name == "const":
            return None
        here = devices()
        return MLComputePlanDeviceUsage(here[0], here)

    def get_compute_device_usage_for_neuralnetwork_layer(self, layer: Any) -> None:
        """Return None: the stand-in loads no neural networks."""
        return None

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> None:
        """Return None, as Core ML does where it has no estimate."""
        return None
