"""Images as inputs and outputs: after the guide's page on image input and output."""

import coremltools as ct
import numpy as np
import torch
from PIL import Image

GAINS = torch.tensor([1.0, 1.0, 0.5]).reshape(1, 3, 1, 1)


class Warmer(torch.nn.Module):
    """Halves the blue of an image with values from 0 to 255, and returns its brightness too."""

    def forward(self, image):
        warm = image * GAINS
        return warm, image.mean(dim=1, keepdim=True)


model = ct.convert(
    torch.jit.trace(Warmer(), torch.zeros(1, 3, 20, 30)),
    inputs=[ct.ImageType(name="image", shape=(1, 3, 20, 30), color_layout=ct.colorlayout.RGB)],
    outputs=[
        ct.ImageType(name="warm", color_layout=ct.colorlayout.RGB),
        ct.ImageType(name="grey", color_layout=ct.colorlayout.GRAYSCALE),
    ],
    minimum_deployment_target=ct.target.iOS16,
)
pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
outputs = model.predict({"image": Image.fromarray(pixels)})

warm, grey = outputs["warm"], outputs["grey"]
assert (warm.size, warm.mode, grey.mode) == ((30, 20), "RGBA", "L")
expected = pixels * np.array([1, 1, 0.5])
np.testing.assert_allclose(np.array(warm.convert("RGB"), np.float32), expected, atol=0.51)
np.testing.assert_allclose(np.array(grey, np.float32), pixels.mean(axis=2), atol=0.6)

try:
    model.predict({"image": Image.new("RGB", (20, 30))})
except RuntimeError as error:
    assert "30 high and 20 wide" in str(error), error
else:
    raise AssertionError("a picture on its side was taken")
