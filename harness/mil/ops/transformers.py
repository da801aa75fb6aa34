"""Attention as one operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation


@operation("scaled_dot_product_attention", inputs=("query", "key", "value", "attn_mask"))
def scaled_dot_product_attention(op: Operation) -> Run:
    """Compute `softmax(q @ k.T / sqrt(E) + mask) @ v`, rounded once, at the end.

    A mask of booleans adds -inf where it is false.
    """

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask
        return torch.softmax(scores, -1) @ value

    return run
