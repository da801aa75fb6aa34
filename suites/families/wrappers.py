"""Modules that call a model of transformers with one tensor and return its first output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NEGATIVE = -1e4  # masks a position: fp16 holds it, and exp gives 0


class Causal(nn.Module):
    """A decoder of token ids under a causal mask that its caller gives, as for a static export."""

    def __init__(self, model: nn.Module, positions: bool) -> None:
        super().__init__()
        self.model, self.positions = model, positions

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits [1, length, vocabulary] of ids [1, length]."""
        places = torch.arange(ids.shape[1])
        hidden = places[None, :] > places[:, None]
        dtype = next(self.model.parameters()).dtype
        mask = hidden.to(dtype)[None, None] * _NEGATIVE
        given = {"position_ids": places[None]} if self.positions else {}
        found = self.model(ids, attention_mask=mask, use_cache=False, return_dict=False, **given)
        return first(found)


class Plain(nn.Module):
    """A model that takes one tensor; `options` are the other arguments of its call."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's first output."""
        return first(self.model(x, return_dict=False, **self.options))


class Pair(nn.Module):
    """An encoder with its decoder, which is fed the encoder's ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Return the decoder's logits."""
        return first(self.model(ids, decoder_input_ids=ids, use_cache=False, return_dict=False))


class Listener(nn.Module):
    """An encoder of sound with its decoder, which is fed three ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("ids", torch.tensor([[1, 5, 9]], dtype=torch.int32))

    def forward(self, features: Tensor) -> Tensor:
        """Return the decoder's logits."""
        return first(
            self.model(features, decoder_input_ids=self.ids, use_cache=False, return_dict=False)
        )


def first(found: Any) -> Tensor:
    while not isinstance(found, Tensor):
        found = found[0]
    return found
