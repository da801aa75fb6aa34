"""Eager modules that are no language models, each a function without parameters.

`--reference` names such a function. A seed decides the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

IMAGE = (1, 3, 15, 21)
VOCABULARY, WIDTH = 48, 32
LENGTHS = (3, 8, 13)
SCALE, BIAS = 1 / 255, -0.5


class _Function(nn.Module):
    """A module whose result is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Return what the function returns."""
        return self.function(self, *tensors)


def perceptron() -> nn.Module:
    """Return a multilayer perceptron that takes [5, 24]; its sizes are odd."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 37), nn.GELU(), nn.Linear(37, 11)).eval()


def convolutions() -> nn.Module:
    """Return convolutions with a batch norm and a skip connection, for any height and width."""
    torch.manual_seed(2)

    def forward(self: Any, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(image)))
        result: torch.Tensor = self.last(x + torch.relu(self.second(x)))
        return result

    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.rand(8) - 0.5, torch.rand(8) + 0.5
    module = _Function(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        norm=norm,
        second=nn.Conv2d(8, 8, 5, padding=2, groups=4),
        last=nn.Conv2d(8, 2, 1),
    )
    return module.eval()


def classifier() -> nn.Module:
    """Return a net that takes an image [1, 3, 15, 21] and gives probabilities [5] of classes."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))
    return nn.Sequential(*layers, nn.Linear(8, 5), nn.Softmax(-1)).eval()


def upsampler() -> nn.Module:
    """Return a net that doubles an image's height and width."""
    torch.manual_seed(4)
    layers = (
        nn.ConvTranspose2d(3, 6, 2, stride=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 3, 3, padding=1),
    )
    return nn.Sequential(*layers).eval()


def of_pixels() -> nn.Module:
    """Return the upsampler with what Core ML does to the pixels of its image input first."""
    return _Function(lambda self, x: self.net(x * SCALE + BIAS), net=upsampler()).eval()


def encoder() -> nn.Module:
    """Return a text encoder: tokens [1, T] to a vector of each [1, T, 32]; attention by hand."""
    torch.manual_seed(5)

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) * WIDTH**-0.5
        x = x + self.out(torch.softmax(scores, -1) @ v)
        result: torch.Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return result

    parts = {
        "embed": nn.Embedding(VOCABULARY, WIDTH),
        "norm": nn.LayerNorm(WIDTH),
        "qkv": nn.Linear(WIDTH, 3 * WIDTH),
        "out": nn.Linear(WIDTH, WIDTH),
        "up": nn.Linear(WIDTH, 3 * WIDTH),
        "down": nn.Linear(3 * WIDTH, WIDTH),
    }
    return _Function(forward, **parts).eval()


def statistics() -> nn.Module:
    """Return a module with three outputs of [5, 24]: a mean of rank 0, extremes, a sum of rows."""
    return _Function(lambda _, x: (x.mean(), torch.stack([x.amin(-1), x.amax(-1)]), x.sum(0)))


def masked() -> nn.Module:
    """Return a softmax of [5, 24] over the values above -1, which a mask with a scalar chooses."""
    return _Function(lambda _, x: x.masked_fill(x <= -1, -1e4).softmax(-1))


class _Average(nn.Module):
    """Keeps a moving average in a state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.linear = nn.Linear(WIDTH, 7)
        self.average: torch.Tensor
        self.register_buffer("average", torch.zeros(1, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [1, 7] of [1, 32]."""
        self.average.mul_(0.5).add_(x * 0.5)
        result: torch.Tensor = self.linear(self.average)
        return result


def average() -> nn.Module:
    """Return a module with a state."""
    return _Average().eval()


def recurrent() -> nn.Module:
    """Return an LSTM of two directions and a projection, for [2, 6, 8]."""
    torch.manual_seed(7)
    parts = {"lstm": nn.LSTM(8, 12, batch_first=True, bidirectional=True), "head": nn.Linear(24, 3)}
    return _Function(lambda self, x: self.head(self.lstm(x)[0]), **parts).eval()


def activations() -> nn.Module:
    """Return a perceptron whose activations are rounded to 8 bits, for [5, 24]."""
    torch.manual_seed(8)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.quantize_per_tensor(x, 1 / 32, 0, torch.qint8).dequantize()
        x = torch.relu(self.first(x))
        x = torch.quantize_per_tensor(x, 1 / 64, 0, torch.quint8).dequantize()
        result: torch.Tensor = self.second(x)
        return result

    return _Function(forward, first=nn.Linear(24, 40), second=nn.Linear(40, 8)).eval()


def methods() -> dict[str, nn.Module]:
    """Return the modules of two functions that share a layer, for [5, 24]."""
    torch.manual_seed(9)
    shared = nn.Linear(24, 64)
    return {
        "encode": _Function(lambda self, x: torch.tanh(self.shared(x)), shared=shared).eval(),
        "score": _Function(
            lambda self, x: self.head(torch.sigmoid(self.shared(x))),
            shared=shared,
            head=nn.Linear(64, 3),
        ).eval(),
    }
