"""The device of each operation: after the reference of `MLComputePlan`."""

import collections

import coremltools as ct
import numpy as np
import torch
from coremltools.models.compute_device import MLComputeDevice, MLCPUComputeDevice
from coremltools.models.compute_plan import MLComputePlan

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 4)).eval()
model = ct.convert(
    torch.jit.trace(network, torch.zeros(2, 8)),
    inputs=[ct.TensorType(name="x", shape=(2, 8))],
    outputs=[ct.TensorType(name="y")],
    compute_precision=ct.precision.FLOAT32,
    minimum_deployment_target=ct.target.iOS17,
)
x = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8)
expected = network(torch.from_numpy(x)).detach().numpy()
np.testing.assert_allclose(model.predict({"x": x})["y"], expected, atol=1e-5)

plan = MLComputePlan.load_from_path(
    path=model.get_compiled_model_path(), compute_units=ct.ComputeUnit.CPU_ONLY
)
main = plan.model_structure.program.functions["main"]
counts: collections.Counter[str] = collections.Counter()
for operation in main.block.operations:
    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    if usage is None:  # constants run nowhere
        counts["nowhere"] += 1
        continue
    counts[operation.operator_name] += 1
    assert isinstance(usage.preferred_compute_device, MLCPUComputeDevice)
    assert usage.preferred_compute_device in usage.supported_compute_devices
assert counts["linear"] == 2 and counts["gelu"] == 1 and counts["nowhere"] > 0, counts
assert all(isinstance(d, MLCPUComputeDevice) for d in MLComputeDevice.get_all_compute_devices())
