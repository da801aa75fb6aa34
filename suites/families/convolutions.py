"""Models of pictures and of sound in plain PyTorch, with what families of convolutions use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _block(inner: int, outer: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Two steps down and up again, joined across; sides are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _block(3, 8), _block(8, 16), _block(16, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.join, self.last = _block(24, 8), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of four classes."""
        wide = self.first(x)
        middle = self.second(functional.max_pool2d(wide, 2))
        low = self.third(functional.max_pool2d(middle, 2))
        joined = self.join(torch.cat([self.up(low), middle], 1))
        large = functional.interpolate(joined, scale_factor=2.0, mode="bilinear")
        found: Tensor = self.last(torch.cat([large, wide], 1))
        return found


class Inception(nn.Module):
    """Branches of several kernels, pooling that rounds up, and a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 8, 2)
        self.one, self.three = nn.Conv2d(8, 6, 1), _block(8, 6)
        self.five = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 6, 1))
        self.down = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ten classes."""
        x = self.stem(x)
        joined = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)
        found: Tensor = self.last(functional.adaptive_avg_pool2d(self.down(joined), 1).flatten(1))
        return found


class Shuffle(nn.Module):
    """Grouped and depthwise convolutions with shuffled channels, and a gate of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 8, 2)
        self.left, self.right = _block(8, 8, groups=2), _block(8, 8, 1, groups=8)
        self.squeeze, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ten classes."""
        x = self.left(self.stem(x))
        x = self._shuffled(x)
        x = functional.hardswish(self.right(x)) + x
        gate = self.expand(functional.relu6(self.squeeze(x.mean((2, 3), keepdim=True))))
        found: Tensor = self.last((x * functional.hardsigmoid(gate)).mean((2, 3)))
        return found

    def _shuffled(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)


class SuperResolution(nn.Module):
    """Residual blocks, then pixels moved from channels to space."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.slope, self.last = nn.PReLU(8), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a picture of twice the size."""
        wide = functional.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]
        features = self.slope(self.first(wide))
        return functional.pixel_shuffle(self.last(features + self.second(features)), 2)


class Temporal(nn.Module):
    """Dilated causal convolutions with gates, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**k) for k in range(4))
        self.mixes = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(4))
        self.last = nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return four channels of the same length."""
        x = self.first(x)
        for level, (gate, mix) in enumerate(zip(self.gates, self.mixes, strict=True)):
            left, right = gate(functional.pad(x, (2**level, 0))).chunk(2, 1)
            x = x + mix(torch.tanh(left) * torch.sigmoid(right))
        found: Tensor = self.last(functional.elu(x))
        return found


class Vocoder(nn.Module):
    """Transposed convolutions that make a wave of a few features, as in HiFi-GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 16, 7, padding=3)
        self.up = nn.ConvTranspose1d(16, 8, 8, 4, 2)
        self.mix = nn.Conv1d(8, 8, 3, padding=3, dilation=3)
        self.last = nn.Conv1d(8, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return a wave of four times the length."""
        x = self.up(functional.leaky_relu(self.first(x), 0.1))
        return torch.tanh(self.last(functional.leaky_relu(x + self.mix(x), 0.1)))


class Recurrent(nn.Module):
    """Two layers in both directions, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten numbers for each step."""
        found: Tensor = self.last(self.layers(x)[0])
        return found
