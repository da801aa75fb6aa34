"""Compute devices: the stand-in has one, the CPU. The other two exist so that they can be named."""

from __future__ import annotations

from typing import Any


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
