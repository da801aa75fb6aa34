"""Rotary position embedding, in Meta's interleaved layout: pair `i` is columns 2i and 2i+1.

Source: https://arxiv.org/abs/2104.09864, equation 34; Llama 3.1's scaling of the frequencies as in
`rope_type: llama3` of transformers.
"""

from __future__ import annotations

import math

import torch

from harness.models.config import LlamaConfig, RopeScaling


def rope_tables(
    config: LlamaConfig, length: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions `0 .. length-1`, each [length, head_dim/2].

    Computed in fp64 whatever `dtype`, then rounded once.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents  # [head_dim/2]
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of x [..., T, head_dim] by its angle; cos and sin are [T, head_dim/2]."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Divide long wavelengths by the factor, keep short ones, blend in between."""
    turns = scaling.original_context_len * frequencies / (2 * math.pi)  # over the old context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor
