"""Computes the model's graph in fp64 PyTorch and keeps every value under a name.

The graph takes a method's inputs and computes the outputs that the method should have, like
`harness.models.model.StaticModel`, but step by step. A `Stage` is one value of the graph. Exporters
compute some things in different ways (RMSNorm with or without rescaling, the values of the
rotation, keys repeated for grouped heads); the values of each way are stages.

Shapes: T tokens, C cache slots, S = C + T, H query heads, K key-value heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.models.config import ModelConfig


@dataclass(frozen=True)
class Stage:
    """A value of the model's graph.

    `cut` is the axis, the first or the last, that programs may divide among several operations;
    None if they do not.
    """

    name: str
    tensor: torch.Tensor
    cut: int | None = None


class Graph:
    """Computes one call; keeps its stages in the order of computing."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        """Take a model; the artifact holds epsilon and the attention's scale in its own `dtype`."""
        self._config = config
        self._weights = weights
        self._eps = _held(config.norm_eps, dtype)
        self._lowest = _held(math.sqrt(config.norm_eps), dtype)
        self._per_doubling = _held(1 / math.log(2), dtype)
        self._scale = _held(config.head_dim**-0.5, dtype)
        self.stages: list[Stage] = []

    @torch.inference_mode()
    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute a call; inputs and outputs are those of `StaticModel`, with floats in fp64."""
        self.stages = []
        n_layers = self._config.n_layers
        tokens, mask, cos, sin, *caches = inputs[: 4 + 2 * n_layers]
        last = inputs[4 + 2 * n_layers] if len(inputs) > 4 + 2 * n_layers else None
        mask, cos, sin, *caches = (tensor.double() for tensor in (mask, cos, sin, *caches))
        rope = self._put("cosines", cos), self._put("sines", sin)
        self._put("mask", mask[0])
        x = self._embedded(tokens[0])
        keys, values = [], []
        for layer in range(n_layers):
            past = caches[layer][0], caches[n_layers + layer][0]  # [K, C, D] each
            x, k, v = self._block(f"layers.{layer}.", x, rope, mask[0], past)
            keys.append(k[None])
            values.append(v[None])
        if last is not None:
            self._index("last_valid_token_pos", last, x.shape[0])
            x = self._put("hidden state of the last token", x[last.long()])
        x = self._norm("norm", x)
        return (self._linear("output", x)[None], *keys, *values)

    def _put(self, name: str, tensor: torch.Tensor, cut: int | None = None) -> torch.Tensor:
        self.stages.append(Stage(name, tensor, cut))
        return tensor

    def _weight(self, name: str) -> torch.Tensor:
        return self._weights[f"{name}.weight"].double()

    def _index(self, name: str, index: torch.Tensor, size: int) -> None:
        """Add the stages of an index: itself, and the values of wrapping a negative one around."""
        self._put(name, index)
        self._put(f"{name} >= 0", index >= 0)
        self._put(f"{name}, counted from the end", index + size)

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        self._index("tokens", tokens, self._config.vocab_size)
        table = self._weights["tok_embeddings.weight"]
        return self._put("tok_embeddings", table[tokens.long()].double())  # [T, dim]

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._put(name, F.linear(x, self._weight(name)), cut=-1)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the RMSNorm of x [T, dim]; add the stages of x divided by a power of two too."""
        size = self._put(f"{name}: |x|", x.abs())
        largest = self._put(f"{name}: largest |x|", size.amax(-1, True))
        clamped = self._put(f"{name}: largest |x|, in range", largest.clamp(self._lowest, 3e4))
        natural = self._put(f"{name}: its logarithm", clamped.log())
        binary = self._put(f"{name}: its binary logarithm", natural * self._per_doubling)
        exponent = self._put(f"{name}: its exponent", binary.floor())
        scale = self._put(f"{name}: its scale", exponent.exp2())
        once = self._put(f"{name}: epsilon / scale", self._eps / scale)
        eps = self._put(f"{name}: epsilon / scale^2", once / scale)
        self._rooted(f"{name} (scaled)", self._put(f"{name}: x / scale", x / scale), eps)
        normed = self._rooted(name, x, torch.tensor(self._eps, dtype=x.dtype))
        return self._put(name, normed * self._weight(name))

    def _rooted(self, name: str, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        squares = self._put(f"{name}: squares", x * x)
        mean = self._put(f"{name}: mean of squares", squares.mean(-1, True))
        raised = self._put(f"{name}: mean + epsilon", mean + eps)
        root = self._put(f"{name}: 1 / rms", raised.rsqrt())
        return self._put(f"{name}: x / rms", x * root)

    def _block(
        self,
        layer: str,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run a transformer block over x [T, dim]; return x, and the new keys and values [K, T, D].

        The stages of each product with a weight precede those that use it, as in a program.
        """
        config = self._config
        normed = self._norm(f"{layer}attention_norm", x)
        q, k, v = (
            self._heads(f"{layer}attention.{name}", normed, count)
            for name, count in (
                ("wq", config.n_heads),
                ("wk", config.n_kv_heads),
                ("wv", config.n_kv_heads),
            )
        )
        q = self._rotated(f"{layer}queries", q, rope)
        k = self._rotated(f"{layer}keys", k, rope)
        all_k = self._joined(f"{layer}keys", past[0], k)
        all_v = self._joined(f"{layer}values", past[1], v)
        attended = self._attended(layer, q, all_k, all_v, mask)
        x = self._put(f"{layer}after attention", x + self._linear(f"{layer}attention.wo", attended))
        normed = self._norm(f"{layer}ffn_norm", x)
        gate = self._linear(f"{layer}feed_forward.w1", normed)
        gate = self._put(f"{layer}silu of the gate", F.silu(gate))
        up = self._linear(f"{layer}feed_forward.w3", normed)
        product = self._put(f"{layer}gate x up", gate * up)
        down = self._linear(f"{layer}feed_forward.w2", product)
        return self._put(f"{layer}after feed forward", x + down), k, v

    def _heads(self, name: str, x: torch.Tensor, count: int) -> torch.Tensor:
        """Split a linear layer's result into heads, [count, T, D]."""
        flat = self._linear(name, x)
        heads = flat.view(x.shape[0], count, -1).transpose(0, 1)
        return self._put(f"{name}, by heads", heads, cut=0)

    def _rotated(
        self, name: str, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Rotate x [heads, T, D] by RoPE in Meta's layout: columns 2i and 2i + 1 are a pair."""
        cos, sin = rope
        parts = {"even": x[..., ::2], "odd": x[..., 1::2]}
        for part, tensor in parts.items():
            self._put(f"{name}: {part} columns", tensor)
        turned = {
            (part, angle): self._put(f"{name}: {part} columns x {angle}", tensor * table)
            for part, tensor in parts.items()
            for angle, table in (("cosines", cos), ("sines", sin))
        }
        even = turned["even", "cosines"] - turned["odd", "sines"]
        odd = turned["even", "sines"] + turned["odd", "cosines"]
        self._put(f"{name}: even columns, rotated", even)
        self._put(f"{name}: odd columns, rotated", odd)
        return self._put(f"{name}, rotated", torch.stack((even, odd), -1).flatten(-2), cut=0)

    def _joined(self, name: str, past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Join the cache and the new values, [K, S, D]; add them repeated per query head too."""
        self._put(f"{name}: the cache", past)
        joined = self._put(f"{name}: cache and new", torch.cat((past, new), 1), cut=0)
        group = self._config.n_heads // self._config.n_kv_heads
        if group > 1:
            self._put(f"{name}: repeated for its heads", joined.repeat_interleave(group, 0))
        return joined

    def _attended(
        self, layer: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return attention [T, H * D] of q [H, T, D] over k and v [K, S, D] under mask [T, S]."""
        group = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        self._put(f"{layer}queries, scaled", q * self._scale)
        products = self._put(f"{layer}scores", q @ k.transpose(1, 2))  # [H, T, S]
        scores = self._put(f"{layer}scores, scaled", products * self._scale)
        masked = self._put(f"{layer}scores, masked", scores + mask)
        chances = self._put(f"{layer}attention weights", masked.softmax(-1))
        mixed = self._put(f"{layer}attention, by heads", chances @ v)  # [H, T, D]
        return self._put(f"{layer}attention", mixed.transpose(0, 1).flatten(1))


def _held(number: float, dtype: torch.dtype) -> float:
    """Round a constant as an artifact of this dtype does."""
    return float(torch.tensor(number, dtype=dtype))
