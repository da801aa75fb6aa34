"""The model that our exporter lowers: shapes are fixed; caches and weights are inputs.

It is a second implementation on purpose and shares nothing with `harness.models.model`: the oracle
must not make the exporter's mistakes.

A method is a chain of stages: the embedding, the blocks, the head. `torch.export` captures each of
them as a module, and all blocks as one. Weights are inputs of the module, so that the captured
graph has shapes only; `harness.export.weight_store` inserts the numbers afterwards.

Attention is grouped: the query heads that share a key-value head are the rows of one product. It
consists of matrix products, a mask and a softmax, without a fused operation.

Shapes: T tokens, C cache slots, S = C + T, H query heads, K key-value heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from harness.export.plan import Stage
from harness.models import ModelConfig

Weights = Mapping[str, Sequence[torch.Tensor]]  # a weight's pieces, cut by rows
Step = Callable[..., tuple[torch.Tensor, ...]]


def embedding(config: ModelConfig, weights: Weights, tokens: torch.Tensor) -> tuple[torch.Tensor]:
    """Look up tokens [1, T]; return the hidden values [1, T, dim]."""
    (table,) = weights["tok_embeddings.weight"]
    return (F.embedding(tokens, table),)


def block(
    config: ModelConfig,
    weights: Weights,
    x: torch.Tensor,
    mask: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a transformer block over x [1, T, dim].

    mask is [1, T, S], cos and sin [T, D/2], past keys and values [1, K, C, D] each. Return the new
    x, and this block's new keys (rotated) and values, [1, K, T, D].
    """
    normed = rms_norm(x, weights["attention_norm.weight"][0], config.norm_eps)
    q = _heads(_linear(normed, weights["attention.wq.weight"]), config.n_heads)  # [1, H, T, D]
    k = _heads(_linear(normed, weights["attention.wk.weight"]), config.n_kv_heads)  # [1, K, T, D]
    v = _heads(_linear(normed, weights["attention.wv.weight"]), config.n_kv_heads)  # [1, K, T, D]
    if "attention.q_norm_fn.weight" in weights:  # Qwen3
        q = rms_norm(q, weights["attention.q_norm_fn.weight"][0], config.norm_eps)
        k = rms_norm(k, weights["attention.k_norm_fn.weight"][0], config.norm_eps)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    all_k, all_v = torch.cat((k_cache, k), 2), torch.cat((v_cache, v), 2)  # [1, K, S, D]
    x = x + _linear(_attend(q, all_k, all_v, mask), weights["attention.wo.weight"])
    normed = rms_norm(x, weights["ffn_norm.weight"][0], config.norm_eps)
    gate = F.silu(_linear(normed, weights["feed_forward.w1.weight"]))
    up = _linear(normed, weights["feed_forward.w3.weight"])
    return x + _linear(gate * up, weights["feed_forward.w2.weight"]), k, v


def head(
    config: ModelConfig,
    weights: Weights,
    x: torch.Tensor,
    last_valid_token_pos: torch.Tensor | None = None,
) -> tuple[torch.Tensor]:
    """Return the logits of x [1, T, dim]: [1, T, vocab], or [1, 1, vocab] of one position [1]."""
    if last_valid_token_pos is not None:
        x = x.index_select(1, last_valid_token_pos)
    x = rms_norm(x, weights["norm.weight"][0], config.norm_eps)
    return (_linear(x, weights["output.weight"]),)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the RMSNorm over the last axis, scaling x below 4 first, so that fp16 cannot overflow.

    x / rms(x) = y / sqrt(mean(y^2) + eps / m^2), where y = x / m, for any m. Here m is a power of 2
    that makes y smaller than 4. Dividing by m is exact for results that are normal numbers, so the
    norm equals that of unscaled squares bit for bit if all of them are normal numbers. Max |x| is
    clamped to at least sqrt(eps): eps / m^2 then stays below 4 and, if fp16 holds eps, an all-zero
    row gives zeros. It is clamped to at most 3e4: its logarithm is rounded too, and 2^16 is
    infinite in fp16.
    """
    largest = x.abs().amax(-1, keepdim=True).clamp(math.sqrt(eps), 3e4)
    m = (largest.log() * (1 / math.log(2))).floor().exp2()
    y = x / m
    rescaled_eps = torch.tensor(eps, dtype=x.dtype) / m / m
    return y * torch.rsqrt((y * y).mean(-1, keepdim=True) + rescaled_eps) * weight


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the attention, [1, T, H * D]: q is [1, H, T, D], k and v [1, K, S, D], mask [1, T, S].

    Query head h reads key-value head h // (H / K).
    """
    _, n_heads, length, head_dim = q.shape
    n_kv_heads, span = k.shape[1], k.shape[2]
    grouped = q.reshape(1, n_kv_heads, -1, head_dim)  # the heads of a group, one below the other
    scores = grouped @ k.transpose(2, 3) * head_dim**-0.5
    weights = (scores.reshape(1, n_heads, length, span) + mask).softmax(-1)
    mixed: torch.Tensor = weights.reshape(1, n_kv_heads, -1, span) @ v
    return mixed.reshape(1, n_heads, length, head_dim).transpose(1, 2).reshape(1, length, -1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [1, heads, T, D] by RoPE in Meta's interleaved layout; cos and sin are [T, D/2]."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).reshape(x.shape)


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """Split [1, T, count * D] into heads [1, count, T, D]."""
    return x.reshape(1, x.shape[1], count, -1).transpose(1, 2)


def _linear(x: torch.Tensor, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Apply a linear layer whose rows are cut into pieces: one product for each piece."""
    results = [F.linear(x, piece) for piece in pieces]
    return results[0] if len(results) == 1 else torch.cat(results, -1)


STEPS: dict[str, Step] = {"embedding": embedding, "block": block, "head": head}


class StageModule(torch.nn.Module):
    """A stage as a module: it takes its inputs, then its weight pieces, and returns its outputs."""

    def __init__(self, config: ModelConfig, stage: Stage) -> None:
        super().__init__()
        self._config, self._stage = config, stage

    def forward(
        self, inputs: list[torch.Tensor], weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute."""
        pieces: dict[str, list[torch.Tensor]] = {}
        for name, piece in zip(self._stage.local_names, weights, strict=True):
            pieces.setdefault(name, []).append(piece)
        return STEPS[self._stage.kind](self._config, pieces, *inputs)
