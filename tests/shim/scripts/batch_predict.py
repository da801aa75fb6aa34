"""Many inputs in one call, of a model and of a compiled one: after the reference of `MLModel`."""

import shutil
import tempfile

import coremltools as ct
import numpy as np
import torch

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.LayerNorm(12), torch.nn.Linear(12, 3), torch.nn.Tanh())
network.eval()
model = ct.convert(
    torch.jit.trace(network, torch.zeros(1, 12)),
    inputs=[ct.TensorType(name="x", shape=(1, 12))],
    outputs=[ct.TensorType(name="y")],
    compute_precision=ct.precision.FLOAT32,
    minimum_deployment_target=ct.target.iOS17,
)
rows = np.random.default_rng(0).normal(size=(5, 1, 12)).astype(np.float32)
expected = network(torch.from_numpy(rows)).detach().numpy()

results = model.predict([{"x": row} for row in rows])
assert len(results) == 5
np.testing.assert_allclose([result["y"] for result in results], expected, atol=1e-5)

kept = f"{tempfile.mkdtemp()}/kept.mlmodelc"
shutil.copytree(model.get_compiled_model_path(), kept)
compiled = ct.models.CompiledMLModel(kept, compute_units=ct.ComputeUnit.CPU_ONLY)
again = compiled.predict([{"x": row} for row in rows])
np.testing.assert_array_equal([r["y"] for r in again], [r["y"] for r in results])
np.testing.assert_array_equal(compiled.predict({"x": rows[2]})["y"], results[2]["y"])
