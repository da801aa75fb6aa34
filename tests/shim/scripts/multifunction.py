"""Two functions that share their weights: after the guide's page on multifunction models."""

import tempfile
from pathlib import Path

import coremltools as ct
import numpy as np
import torch

torch.manual_seed(0)
block = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64))
block.eval()
folder = Path(tempfile.mkdtemp())
descriptor = ct.utils.MultiFunctionDescriptor()
lengths = {"prefill": 16, "decode": 1}

for name, length in lengths.items():
    traced = torch.jit.trace(block, torch.zeros(1, length, 64))
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(name="hidden", shape=(1, length, 64))],
        outputs=[ct.TensorType(name="result")],
        minimum_deployment_target=ct.target.iOS18,
    )
    model.save(str(folder / f"{name}.mlpackage"))
    descriptor.add_function(
        str(folder / f"{name}.mlpackage"),
        src_function_name="main",
        target_function_name=name,
    )

descriptor.default_function_name = "prefill"
path = str(folder / "both.mlpackage")
ct.utils.save_multifunction(descriptor, path)

whole = np.random.default_rng(0).normal(size=(1, 16, 64)).astype(np.float32)
expected = block(torch.from_numpy(whole)).detach().numpy()
prefill = ct.models.MLModel(path, function_name="prefill").predict({"hidden": whole})["result"]
np.testing.assert_allclose(prefill, expected, atol=2e-3 * np.abs(expected).max())

decode = ct.models.MLModel(path, function_name="decode")
for place in range(16):
    result = decode.predict({"hidden": whole[:, place : place + 1]})["result"]
    # a single row is summed in another order: half an fp16 step may round the other way
    np.testing.assert_allclose(result[0, 0], prefill[0, place], rtol=1e-3, atol=1e-4)

sizes = {
    name: (folder / name / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    for name in ("prefill.mlpackage", "both.mlpackage")
}
assert sizes["both.mlpackage"] == sizes["prefill.mlpackage"], sizes
