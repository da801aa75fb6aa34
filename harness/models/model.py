"""A language model in plain PyTorch: over a whole sequence, and as the method that is exported.

- `Oracle` computes all tokens at once, without a cache. Run it in fp64 or fp32.
- `StaticModel` has the inputs and outputs of the exported method: fixed shapes, and the caller
  passes mask and caches. It computes in one dtype, except for the norms. It is the eager reference
  in the artifact's own precision.

Both call `evaluate`, which calls the architecture's block, which calls `Operations`. A subclass of
`Operations` sees each named value (`tap`), or computes an operation in another way.

The exporter's own graph (`harness.export.graph`) shares none of this code, on purpose.

Shapes: T tokens, C cache slots, S = C + T, H query heads, K key-value heads, D head_dim; `...` are
batch axes, or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from harness.errors import HarnessError
from harness.models import Cache, ModelConfig, RopeScaling, Surroundings

Freqs = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [T, D/2]
Results = tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]  # logits, keys, values

_ROWS = 1 << 14  # of a linear layer, converted at a time: an output layer has 100,000


class Operations:
    """The operations of a block, on weights by Meta's names, in one dtype.

    Weights are converted to `dtype` on each use: a model of a billion weights in fp64 would take
    10 GB. Each value goes through `tap` with a name that is unique in a call.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        self.config, self.weights, self.dtype = config, weights, dtype

    def tap(self, name: str, value: torch.Tensor, cut: int | None = None) -> torch.Tensor:
        """Return a value that was just computed.

        `cut` is the axis, the first or the last, that programs may divide among several operations;
        None if they do not.
        """
        return value

    def weight(self, name: str) -> torch.Tensor:
        """Return a weight in its stored dtype."""
        return self.weights[f"{name}.weight"]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up tokens [..., T]; return [..., T, dim]."""
        rows = self.weight("tok_embeddings")[tokens.long()]
        return self.tap("tok_embeddings", rows.to(self.dtype))

    def select(self, x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Take the position `last` [1] out of x [..., T, dim]; return [..., 1, dim]."""
        return self.tap("hidden state of the last token", x[..., last.long(), :])

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Multiply x [..., columns] by a weight [rows, columns]; return [..., rows]."""
        weight = self.weight(name)
        if len(weight) <= _ROWS:
            return self.tap(name, F.linear(x, weight.to(self.dtype)), cut=-1)
        parts = [F.linear(x, rows.to(self.dtype)) for rows in weight.split(_ROWS)]
        return self.tap(name, torch.cat(parts, -1), cut=-1)

    def heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return a linear layer's result over x [..., T, dim] as heads, [..., heads, T, D]."""
        flat = self.linear(name, x)
        split = flat.view(*flat.shape[:-1], -1, self.config.head_dim).transpose(-3, -2)
        return self.tap(f"{name}, by heads", split, cut=0)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the RMSNorm over the last axis of x, computed in fp32 at least.

        ExecuTorch's models do the same. A program that squares in fp16 overflows at |x| > 255; a
        calibration must show this.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = self.over_rms(name, wide, self.config.norm_eps).to(x.dtype)
        return self.tap(name, normed * self.weight(name).to(self.dtype))

    def over_rms(self, name: str, x: torch.Tensor, eps: torch.Tensor | float) -> torch.Tensor:
        """Divide x by the root mean square of its last axis."""
        squares = self.tap(f"{name}: squares", x * x)
        mean = self.tap(f"{name}: mean of squares", squares.mean(-1, keepdim=True))
        raised = self.tap(f"{name}: mean + epsilon", mean + eps)
        return self.tap(f"{name}: x / rms", x * self.tap(f"{name}: 1 / rms", raised.rsqrt()))

    def rotate(self, name: str, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
        """Rotate x [..., T, D] by RoPE in Meta's layout: columns 2i and 2i + 1 are a pair."""
        even = self.tap(f"{name}: even columns", x[..., ::2])
        odd = self.tap(f"{name}: odd columns", x[..., 1::2])
        even_cos = self.tap(f"{name}: even columns x cosines", even * around.cos)
        even_sin = self.tap(f"{name}: even columns x sines", even * around.sin)
        odd_cos = self.tap(f"{name}: odd columns x cosines", odd * around.cos)
        odd_sin = self.tap(f"{name}: odd columns x sines", odd * around.sin)
        even = self.tap(f"{name}: even columns, rotated", even_cos - odd_sin)
        odd = self.tap(f"{name}: odd columns, rotated", even_sin + odd_cos)
        return self.tap(f"{name}, rotated", torch.stack((even, odd), -1).flatten(-2), cut=0)

    def join(self, name: str, past: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """Append new keys or values [..., K, T, D] to a cache [..., K, C, D], if there is one."""
        return new if past is None else self.place(name, past, new)

    def place(self, name: str, past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Append to a cache that exists."""
        self.tap(f"{name}: the cache", past)
        return self.tap(f"{name}: cache and new", torch.cat((past, new), -2), cut=0)

    def attention_scale(self, dtype: torch.dtype) -> torch.Tensor | float:
        """Return the factor of the scores, rounded to `dtype`, as artifacts hold it."""
        return torch.tensor(self.config.scale, dtype=dtype)

    def attend(
        self, layer: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention of q [..., H, T, D] over k and v [..., K, S, D] under mask [T, S].

        Query head h reads key-value head h // (H / K). The result is [..., T, H * D].
        """
        *batch, n_heads, length, head_dim = q.shape
        n_kv_heads, span = k.shape[-3:-1]
        grouped = q.reshape(*batch, n_kv_heads, -1, head_dim)  # [..., K, H / K * T, D]
        factor = self.attention_scale(q.dtype)
        by_head = (*batch, n_heads, length)
        products = self.tap(f"{layer}scores", (grouped @ k.transpose(-2, -1)).view(*by_head, span))
        scores = self.tap(f"{layer}scores, scaled", products * factor)
        masked = self.tap(f"{layer}scores, masked", scores + mask)
        weights = self.tap(f"{layer}attention weights", masked.softmax(-1))
        mixed = (weights.view(*batch, n_kv_heads, -1, span) @ v).view(*by_head, head_dim)
        mixed = self.tap(f"{layer}attention, by heads", mixed)
        return self.tap(f"{layer}attention", mixed.transpose(-3, -2).flatten(-2))

    def feed_forward(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """Compute w2(silu(w1(x)) * w3(x)) over x [..., T, dim]."""
        gate = self.linear(f"{layer}feed_forward.w1", x)
        gate = self.tap(f"{layer}silu of the gate", F.silu(gate))
        up = self.linear(f"{layer}feed_forward.w3", x)
        product = self.tap(f"{layer}gate x up", gate * up)
        return self.linear(f"{layer}feed_forward.w2", product)


def evaluate(
    ops: Operations,
    tokens: torch.Tensor,
    around: Surroundings,
    caches: Sequence[Cache] | None = None,
    last: torch.Tensor | None = None,
    masks: Sequence[torch.Tensor] = (),
) -> Results:
    """Compute logits [..., T, vocab], and each layer's new rotated keys and values [..., K, T, D].

    `caches` holds each layer's keys and values [..., K, C, D]; the mask is then [T, C + T]. With
    `last` [1], only the logits of this position are computed: [..., 1, vocab]. `masks` holds a mask
    for each layer, if some have a sliding window.
    """
    config = ops.config
    around = Surroundings(
        *(ops.tap(*row) for row in zip(("cosines", "sines", "mask"), around, strict=True))
    )
    x = ops.embed(tokens)
    keys, values = [], []
    for layer in range(config.n_layers):
        past = caches[layer] if caches else None
        here = around._replace(mask=masks[layer]) if masks else around
        x, k, v = config.architecture.block(ops, f"layers.{layer}.", x, here, past)
        keys.append(k)
        values.append(v)
    if last is not None:
        x = ops.select(x, last)
    return ops.linear("output", ops.norm("norm", x)), keys, values


def evaluate_method(ops: Operations, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Compute a call of an exported method, from its flat inputs to its flat outputs.

    Inputs: tokens [1, T] integer; a mask [1, T, C + T], 0 or -inf, for each length C of a cache;
    cos, sin [T, D/2]; a key cache [1, K, C, D] per layer; a value cache per layer; and, in a
    multifunction export, last_valid_token_pos [1] integer. Floats have any dtype. Outputs, in
    `ops.dtype`: logits,
    [1, T, vocab], or [1, 1, vocab] of the last valid token; then the new keys [1, K, T, D] of each
    layer; then the new values. Raises HarnessError for a wrong number of inputs, and for tokens
    outside the vocabulary.
    """
    n_layers = ops.config.n_layers
    lengths = {cache.shape[2] for cache in inputs[4:] if cache.dim() == 4}
    n_masks = max(1, len(lengths))
    count = 3 + n_masks + 2 * n_layers
    if len(inputs) not in (count, count + 1):
        raise HarnessError(
            f"a {n_layers}-layer method takes {count} inputs, or one more with "
            f"last_valid_token_pos; got {len(inputs)}"
        )
    tokens, *floats = inputs[:count]
    check_tokens(tokens[0], ops.config)
    cos, sin, *caches = (tensor.to(ops.dtype) for tensor in floats[n_masks:])
    masks = {m.shape[2] - m.shape[1]: m[0].to(ops.dtype) for m in floats[:n_masks]}
    if masks.keys() != lengths:
        raise HarnessError(f"its masks are for caches of {[*masks]}, its caches have {[*lengths]}")
    past = [(k[0], v[0]) for k, v in zip(caches[:n_layers], caches[n_layers:], strict=True)]
    last = inputs[count] if len(inputs) > count else None
    of_layers = [masks[k.shape[1]] for k, _ in past]
    around = Surroundings(cos, sin, of_layers[0])
    logits, keys, values = evaluate(
        ops, tokens[0], around, past, last, of_layers if n_masks > 1 else ()
    )
    return (logits[None], *(k[None] for k in keys), *(v[None] for v in values))


def whole_sequence(
    config: ModelConfig, freqs: Freqs, length: int, dtype: torch.dtype
) -> Surroundings:
    """Return the other inputs of the blocks for a whole sequence of `length` tokens."""
    positions = torch.arange(length)
    visible = config.architecture.mask(positions[:, None], positions)
    mask = torch.zeros(length, length, dtype=dtype).masked_fill(~visible, -torch.inf)
    return Surroundings(freqs[0].to(dtype), freqs[1].to(dtype), mask)


def windowed(mask: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return a mask [T, T] in which a token sees itself and the `window - 1` before it."""
    if window is None:
        return mask
    evicted = torch.ones(mask.shape, dtype=torch.bool).tril(-window)
    return mask.masked_fill(evicted, -torch.inf)


class Oracle:
    """Computes logits, keys and values of a whole sequence, without a cache or padding.

    `windows` has the sliding window of each layer, None for full attention: a token sees itself and
    the `window - 1` tokens before it.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float64,
        windows: Sequence[int | None] = (),
    ):
        self.config, self.dtype, self.windows = config, dtype, windows
        self._ops = Operations(config, weights, dtype)

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor, freqs: Freqs | None = None) -> Results:
        """Return logits [T, vocab], and each layer's rotated keys and values, [K, T, D].

        `tokens` is a LongTensor [T]. `freqs` replaces the exact RoPE tables with the caller's,
        [T, D/2] each: an artifact has rounded ones.
        """
        check_tokens(tokens, self.config)
        length = tokens.shape[0]
        freqs = freqs or rope_tables(self.config, length)
        around = whole_sequence(self.config, freqs, length, self.dtype)
        masks = [windowed(around.mask, window) for window in self.windows]
        return evaluate(self._ops, tokens, around, masks=masks)


class StaticModel:
    """The exported method in eager PyTorch; its weights are converted to `dtype` once."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float16,
    ):
        converted = {id(weight): weight.to(dtype) for weight in weights.values()}
        self.weights = {name: converted[id(weight)] for name, weight in weights.items()}
        self._ops = Operations(config, self.weights, dtype)

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute one call of the method; see `evaluate_method`."""
        return evaluate_method(self._ops, inputs)


def check_tokens(tokens: torch.Tensor, config: ModelConfig) -> None:
    """Raise HarnessError unless tokens [T] are a row of ids in the vocabulary."""
    if tokens.dim() != 1 or not tokens.numel():
        raise HarnessError(f"tokens must be a non-empty row, not of shape {list(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= config.vocab_size:
        raise HarnessError(
            f"token {low if low < 0 else high} is outside the vocabulary of {config.vocab_size}"
        )


def rope_tables(config: ModelConfig, length: int, dtype: torch.dtype = torch.float64) -> Freqs:
    """Return cosines and sines of positions `0 .. length-1`, each [length, head_dim/2].

    They are computed in fp64 for every `dtype`, then rounded once.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents  # [head_dim/2]
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Divide the frequencies of long wavelengths by the factor, keep short ones, blend between."""
    turns = scaling.original_context_len * frequencies / (2 * math.pi)  # over the old context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def table_error(table: torch.Tensor) -> torch.Tensor:
    """Return the error that a RoPE table may have at each position, fp64 [positions, 1].

    It is one ULP of the table's dtype at 1, and the error of angles in fp32, in which ExecuTorch's
    exporter computes them: up to p * 2**-23 at position p.
    """
    position = torch.arange(table.shape[0], dtype=torch.float64)[:, None]
    return torch.finfo(table.dtype).eps + position * 2.0**-23
