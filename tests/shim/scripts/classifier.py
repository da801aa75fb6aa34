"""A label and probabilities of an image: after the guide's page on classifiers."""

import coremltools as ct
import numpy as np
import torch
from PIL import Image

torch.manual_seed(3)
labels = ["tench", "goldfish", "hen", "ostrich", "robin"]
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 5, stride=2),
    torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
    torch.nn.Linear(16, len(labels)),
    torch.nn.Softmax(dim=-1),
).eval()
model = ct.convert(
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)),
    inputs=[ct.ImageType(name="image", shape=(1, 3, 32, 32), scale=1 / 127.5, bias=[-1, -1, -1])],
    classifier_config=ct.ClassifierConfig(labels),
    compute_precision=ct.precision.FLOAT32,
    minimum_deployment_target=ct.target.iOS16,
)
assert model.get_spec().description.predictedFeatureName == "classLabel"
pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
outputs = model.predict({"image": Image.fromarray(pixels)})

x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
expected = network(x).detach().numpy()[0]
(probabilities,) = (value for value in outputs.values() if isinstance(value, dict))
assert outputs["classLabel"] == labels[expected.argmax()]
assert set(probabilities) == set(labels)
np.testing.assert_allclose([probabilities[name] for name in labels], expected, atol=1e-5)
