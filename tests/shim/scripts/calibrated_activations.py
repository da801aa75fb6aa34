"""Activations in 8 bits with ranges from predictions: after the guide's page on quantization.

coremltools itself predicts here, once for each sample and intermediate value.
"""

import coremltools as ct
import numpy as np
import torch
from coremltools.optimize import coreml as cto

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 8))
network.eval()
model = ct.convert(
    torch.jit.trace(network, torch.zeros(1, 32)),
    inputs=[ct.TensorType(name="x", shape=(1, 32))],
    outputs=[ct.TensorType(name="y")],
    minimum_deployment_target=ct.target.iOS17,
)
samples = np.random.default_rng(0).uniform(-1, 1, (6, 1, 32)).astype(np.float32)
config = cto.OptimizationConfig(
    global_config=cto.experimental.OpActivationLinearQuantizerConfig(mode="linear_symmetric")
)
compressed = cto.experimental.linear_quantize_activations(
    model, config, [{"x": sample} for sample in samples]
)
kinds = [
    operation.type
    for function in compressed.get_spec().mlProgram.functions.values()
    for operation in function.block_specializations[function.opset].operations
]
assert kinds.count("quantize") >= 2 and kinds.count("dequantize") >= 2, kinds

expected = network(torch.from_numpy(samples)).detach().numpy()
largest = np.abs(expected).max()
exact = np.stack([model.predict({"x": sample})["y"] for sample in samples])
rough = np.stack([compressed.predict({"x": sample})["y"] for sample in samples])
np.testing.assert_allclose(exact, expected, atol=3e-3 * largest)
np.testing.assert_allclose(rough, expected, atol=0.05 * largest)
assert np.abs(rough - exact).max() > 2e-4 * largest, "nothing was quantized"
