"""Inputs of several sizes: after the guide's page on flexible input shapes."""

import coremltools as ct
import numpy as np
import torch

torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.AvgPool2d(2),
    torch.nn.Conv2d(8, 2, 1),
).eval()
traced = torch.jit.trace(network, torch.zeros(1, 3, 16, 16))
random = np.random.default_rng(1)


def compare(model, *sizes):
    for size in sizes:
        x = random.uniform(-1, 1, (1, 3, *size)).astype(np.float32)
        expected = network(torch.from_numpy(x)).detach().numpy()
        result = model.predict({"x": x})["y"]
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-5)


def converted(shape):
    return ct.convert(
        traced,
        inputs=[ct.TensorType(name="x", shape=shape)],
        outputs=[ct.TensorType(name="y")],
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
    )


shapes = [(1, 3, 16, 16), (1, 3, 8, 32), (1, 3, 24, 24)]
listed = converted(ct.EnumeratedShapes(shapes=shapes, default=shapes[0]))
compare(listed, *(shape[2:] for shape in shapes))
try:
    listed.predict({"x": np.zeros((1, 3, 16, 32), np.float32)})
except RuntimeError as error:
    assert "[1, 3, 8, 32]" in str(error), error
else:
    raise AssertionError("a shape that is not listed was taken")

height = ct.RangeDim(lower_bound=4, upper_bound=32, default=16)
width = ct.RangeDim(lower_bound=4, upper_bound=64, default=16)
compare(converted((1, 3, height, width)), (4, 64), (10, 6), (32, 32))
