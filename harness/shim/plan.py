"""The compute plan of a model: here, every operation runs on the CPU.

Where Core ML would place an operation, and what it would cost there, only a Mac can say.
"""

from __future__ import annotations

import warnings
from typing import Any

from harness.artifact import Package
from harness.shim.devices import devices
from harness.shim.structure import model_structure


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
