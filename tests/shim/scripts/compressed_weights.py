"""Quantized, palettised and pruned weights: after the guide's pages on optimisation.

The script computes each way's compressed weight again, in numpy.
"""

import coremltools as ct
import numpy as np
import torch
from coremltools.optimize import coreml as cto

torch.manual_seed(0)
network = torch.nn.Linear(64, 96, bias=False).eval()
weight = network.weight.detach().numpy()
model = ct.convert(
    torch.jit.trace(network, torch.zeros(1, 64)),
    inputs=[ct.TensorType(name="x", shape=(1, 64))],
    outputs=[ct.TensorType(name="y")],
    compute_precision=ct.precision.FLOAT32,
    minimum_deployment_target=ct.target.iOS18,
)
x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)


def rounded(values, bits):
    """Round to symmetric integers with one scale for each row of the last axis."""
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(values).max(axis=-1, keepdims=True) / largest
    return np.clip(np.rint(values / scale), -largest, largest) * scale


def compare(compress, config, expected):
    compressed = compress(model, cto.OptimizationConfig(global_config=config))
    y = compressed.predict({"x": x})["y"]
    np.testing.assert_allclose(y, x @ expected.T, atol=1e-5)
    assert np.abs(y - x @ weight.T).max() > 1e-4, "nothing was compressed"


compare(
    cto.linear_quantize_weights,
    cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0),
    rounded(weight, 8),
)
compare(
    cto.linear_quantize_weights,
    cto.OpLinearQuantizerConfig(
        mode="linear_symmetric",
        dtype="int4",
        granularity="per_block",
        block_size=32,
        weight_threshold=0,
    ),
    rounded(weight.reshape(96, 2, 32), 4).reshape(96, 64),
)
steps = np.linspace(weight.min(), weight.max(), 16)
compare(
    cto.palettize_weights,
    cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0),
    steps[np.abs(weight[..., None] - steps).argmin(axis=-1)],
)
threshold = np.sort(np.abs(weight), axis=None)[weight.size // 2]
compare(
    cto.prune_weights,
    cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0),
    np.where(np.abs(weight) >= threshold, weight, 0),
)
