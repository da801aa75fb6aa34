"""What `coremltools.libcoremlpython` holds here: the names that coremltools imports from it."""

from __future__ import annotations

from harness.shim.asset import ModelAssetProxy
from harness.shim.devices import CPUDeviceProxy, GPUDeviceProxy, NeuralEngineDeviceProxy
from harness.shim.model import ModelProxy
from harness.shim.plan import ComputePlanProxy
from harness.shim.state import StateProxy
from harness.shim.structure import LayerProxy, OperationProxy

NAMES = {
    "_MLModelProxy": ModelProxy,
    "_MLModelAssetProxy": ModelAssetProxy,
    "_MLComputePlanProxy": ComputePlanProxy,
    "_MLCPUComputeDeviceProxy": CPUDeviceProxy,
    "_MLGPUComputeDeviceProxy": GPUDeviceProxy,
    "_MLNeuralEngineComputeDeviceProxy": NeuralEngineDeviceProxy,
    "_State": StateProxy,
    "_MLModelStructureProgramOperationProxy": OperationProxy,
    "_MLModelStructureNeuralNetworkLayerProxy": LayerProxy,
}
