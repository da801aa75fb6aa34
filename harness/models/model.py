"""Llama in plain PyTorch, twice: over a whole sequence, and as the method that is exported.

- :class:`Oracle` computes all tokens at once, with a causal mask and no cache. Run it in fp64 or
  fp32.
- :class:`StaticModel` has the inputs and outputs of the exported method: fixed shapes, and the
  caller passes mask and caches. It computes in one dtype, except for the norms. It is the eager
  reference in the artifact's own precision.

Both run the same :func:`_block`. Shapes: T tokens, C cache slots, H query heads, K key-value heads,
D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F

from harness.errors import HarnessError
from harness.models.config import ModelConfig, RopeScaling

Freqs = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [T, D/2]
Layer = Mapping[str, torch.Tensor]  # a block's weights, named without the prefix "layers.N."

_OUTPUT_ROWS = 1 << 14  # of the output layer, converted at a time


class Oracle:
    """Computes logits, keys and values of a whole sequence, without a cache or padding.

    Weights are converted to `dtype` one layer at a time, on each use: a model of a billion weights
    in fp64 would take 10 GB.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float64,
    ):
        self.config, self.dtype = config, dtype
        self._weights = weights

    @torch.no_grad()
    def forward(
        self, tokens: torch.Tensor, freqs: Freqs | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return logits [T, vocab], and each layer's rotated keys and values, [K, T, D].

        `tokens` is a LongTensor [T]. `freqs` replaces the exact RoPE tables with the caller's,
        [T, D/2] each: an artifact has rounded ones.
        """
        _check_tokens(tokens, self.config)
        length = tokens.shape[0]
        cos, sin = freqs or rope_tables(self.config, length)
        cos, sin = cos.to(self.dtype), sin.to(self.dtype)
        causal = torch.full((length, length), -torch.inf, dtype=self.dtype).triu(1)
        x = self._weights["tok_embeddings.weight"][tokens].to(self.dtype)  # [T, dim]
        keys, values = [], []
        for layer in _layers(self.config, self._weights, self.dtype):
            x, k, v = _block(x, layer, self.config, cos, sin, causal)
            keys.append(k)
            values.append(v)
        x = _rms_norm(x, self._weights["norm.weight"].to(self.dtype), self.config.norm_eps)
        output = self._weights["output.weight"].split(_OUTPUT_ROWS)
        return torch.cat([F.linear(x, rows.to(self.dtype)) for rows in output], -1), keys, values

    __call__ = forward


class StaticModel:
    """The exported method in eager PyTorch: it takes flat inputs and returns flat outputs."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float16,
    ):
        self.config, self.dtype = config, dtype
        self._weights = _Weights(config, weights, dtype)

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the method once; floating-point inputs have any dtype, outputs have `dtype`.

        Inputs: tokens [1, T] integer; mask [1, T, C + T], 0 or -inf; cos, sin [T, D/2]; a key cache
        [1, K, C, D] per layer; a value cache per layer; and, in a multifunction export,
        last_valid_token_pos [1] integer. Outputs: logits, [1, T, vocab], or [1, 1, vocab] of the
        last valid token; then the new keys [1, K, T, D] of each layer; then the new values.
        """
        n_layers = self.config.n_layers
        if len(inputs) not in (4 + 2 * n_layers, 5 + 2 * n_layers):
            raise HarnessError(
                f"a {n_layers}-layer method takes {4 + 2 * n_layers} inputs, or one more with "
                f"last_valid_token_pos; got {len(inputs)}"
            )
        tokens, *floats = inputs[: 4 + 2 * n_layers]
        _check_tokens(tokens[0], self.config)
        mask, cos, sin, *caches = (tensor.to(self.dtype) for tensor in floats)
        x = self._weights.embedding[tokens[0]]  # [T, dim]
        keys, values = [], []
        for layer, k_cache, v_cache in zip(
            self._weights.layers, caches[:n_layers], caches[n_layers:], strict=True
        ):
            past = k_cache[0], v_cache[0]
            x, k, v = _block(x, layer, self.config, cos, sin, mask[0], past)
            keys.append(k[None])
            values.append(v[None])
        if len(inputs) > 4 + 2 * n_layers:
            x = x[inputs[-1]]  # [1, dim]
        return (self._weights.logits(x)[None], *keys, *values)


class _Weights:
    """A model's weights in one dtype, by block; a tied output layer stays tied."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
    ):
        self.embedding = weights["tok_embeddings.weight"].to(dtype)
        tied = weights["output.weight"] is weights["tok_embeddings.weight"]
        self.output = self.embedding if tied else weights["output.weight"].to(dtype)
        self.norm = weights["norm.weight"].to(dtype)
        self.eps = config.norm_eps
        self.layers = list(_layers(config, weights, dtype))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(_rms_norm(x, self.norm, self.eps), self.output)


def _layers(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Iterator[Layer]:
    for prefix in (f"layers.{layer}." for layer in range(config.n_layers)):
        yield {
            name.removeprefix(prefix): value.to(dtype)
            for name, value in weights.items()
            if name.startswith(prefix)
        }


def _block(
    x: torch.Tensor,
    layer: Layer,
    config: ModelConfig,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor,
    past: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a transformer block over x [T, dim]; mask is [T, C + T], past keys and values [K, C, D].

    Return the new x, and this block's new keys (rotated) and values, [K, T, D].
    """
    normed = _rms_norm(x, layer["attention_norm.weight"], config.norm_eps)
    q = _heads(F.linear(normed, layer["attention.wq.weight"]), config.n_heads)  # [H, T, D]
    k = _heads(F.linear(normed, layer["attention.wk.weight"]), config.n_kv_heads)  # [K, T, D]
    v = _heads(F.linear(normed, layer["attention.wv.weight"]), config.n_kv_heads)  # [K, T, D]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    all_k, all_v = (
        (k, v) if past is None else (torch.cat((past[0], k), 1), torch.cat((past[1], v), 1))
    )
    attended = _attend(q, all_k, all_v, mask, config.scale)
    x = x + F.linear(attended, layer["attention.wo.weight"])
    normed = _rms_norm(x, layer["ffn_norm.weight"], config.norm_eps)
    gate = F.silu(F.linear(normed, layer["feed_forward.w1.weight"]))
    up = F.linear(normed, layer["feed_forward.w3.weight"])
    return x + F.linear(gate * up, layer["feed_forward.w2.weight"]), k, v


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return the attention [T, H * D] of q [H, T, D] over k and v [K, S, D] under mask [T, S].

    Query head h reads key-value head h // (H / K).
    """
    n_heads, length, head_dim = q.shape
    n_kv_heads = k.shape[0]
    grouped = q.reshape(n_kv_heads, -1, head_dim)  # the heads of a group, one below the other
    factor = torch.tensor(scale, dtype=q.dtype)  # rounded, as an artifact in this dtype holds it
    scores = (grouped @ k.transpose(1, 2) * factor).view(n_heads, length, -1) + mask
    weights = scores.softmax(-1).view(n_kv_heads, -1, k.shape[1])
    return (weights @ v).view(n_heads, length, head_dim).transpose(0, 1).reshape(length, -1)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the RMSNorm of x [T, dim], computed in fp32 at least.

    Meta's and ExecuTorch's models do the same. A program that squares in fp16 overflows at
    |x| > 255; a calibration must show this.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """Split [T, count * D] into heads [count, T, D]."""
    return x.view(x.shape[0], count, -1).transpose(0, 1)


def _check_tokens(tokens: torch.Tensor, config: ModelConfig) -> None:
    if tokens.dim() != 1 or not tokens.numel():
        raise HarnessError(f"tokens must be a non-empty row, not of shape {list(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= config.vocab_size:
        raise HarnessError(
            f"token {low if low < 0 else high} is outside the vocabulary of {config.vocab_size}"
        )


def rope_tables(
    config: ModelConfig, length: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and sines of positions `0 .. length-1`, each [length, head_dim/2].

    They are computed in fp64 for every `dtype`, then rounded once.
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
    """Divide the frequencies of long wavelengths by the factor, keep short ones, blend between."""
    turns = scaling.original_context_len * frequencies / (2 * math.pi)  # over the old context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor
