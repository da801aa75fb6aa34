"""A model that was never a file: after the reference of `MLModelAsset`."""

from pathlib import Path

import coremltools as ct
import numpy as np
import torch

torch.manual_seed(0)
network = torch.nn.Linear(40, 50).eval()
model = ct.convert(
    torch.jit.trace(network, torch.zeros(1, 40)),
    inputs=[ct.TensorType(name="x", shape=(1, 40))],
    outputs=[ct.TensorType(name="y")],
    compute_precision=ct.precision.FLOAT32,
    minimum_deployment_target=ct.target.iOS18,
    skip_model_load=True,
)
specification = model.get_spec().SerializeToString()
weights = Path(model.weights_dir, "weight.bin").read_bytes()
assert len(weights) > 40 * 50 * 4

asset = ct.models.model.MLModelAsset.from_memory(
    spec_data=specification, blob_mapping={"weights/weight.bin": weights}
)
compiled = ct.models.CompiledMLModel.from_asset(asset)
x = np.linspace(-1, 1, 40, dtype=np.float32)[None]
expected = network(torch.from_numpy(x)).detach().numpy()
np.testing.assert_allclose(compiled.predict({"x": x})["y"], expected, atol=1e-5)
