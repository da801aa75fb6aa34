"""Parts of language models: norms, RoPE, attention, the gated MLP, and the project's own block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.models import Surroundings
from harness.models.config import parse_params
from harness.models.llama import block
from harness.models.model import Operations
from harness.suites.second_opinion.operations import OPERATIONS, Function, Subject
from harness.suites.second_opinion.values import EXTREMES, ORDINARY, Given

_HEADS, _KV_HEADS, _DIM, _TOKENS, _SLOTS = 4, 2, 8, 3, 5
_WIDTH = _HEADS * _DIM
_CONFIG = parse_params(
    {
        "dim": _WIDTH,
        "n_layers": 1,
        "n_heads": _HEADS,
        "n_kv_heads": _KV_HEADS,
        "hidden_dim": 48,
        "vocab_size": 64,
        "norm_eps": 1e-5,
    }
)


class Scaled(nn.Module):
    """A function of an input and a weight of its last axis."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], width: int = _WIDTH) -> None:
        super().__init__()
        self.function = function
        drawn = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(width, generator=drawn))

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of the input and the weight."""
        return self.function(x, self.weight)


class Gated(nn.Module):
    """Llama's feed forward: three linears and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.gate = nn.Linear(_WIDTH, 48, bias=False)
        self.up = nn.Linear(_WIDTH, 48, bias=False)
        self.down = nn.Linear(48, _WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected product of the gate and the input."""
        found: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return found


class _Held(Operations):
    """Operations on the parameters of a module."""

    def __init__(self, parameters: nn.ParameterDict, dtype: torch.dtype) -> None:
        super().__init__(_CONFIG, {}, dtype)
        self._held = parameters

    def weight(self, name: str) -> Tensor:
        """Return a parameter by Meta's name."""
        found: Tensor = self._held[name.replace(".", "-")]
        return found


class Block(nn.Module):
    """The oracle's Llama block: x, cosines, sines and a mask, and a cache if `cached`."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached = cached
        drawn = torch.Generator().manual_seed(13)
        shapes = {n: s for n, s in _CONFIG.weight_shapes.items() if n.startswith("layers.0.")}
        self.held = nn.ParameterDict()
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=drawn)
            value = 1 + 0.1 * value if len(shape) == 1 else value / math.sqrt(shape[1])
            self.held[name.removesuffix(".weight").replace(".", "-")] = nn.Parameter(value)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *past: Tensor) -> Any:
        """Return x after the block, the new keys and the new values."""
        around = Surroundings(cos, sin, mask)
        cache = (past[0], past[1]) if self.cached else None
        return block(_Held(self.held, x.dtype), "layers.0.", x, around, cache)


class Growing(nn.Module):
    """Attention over a cache that the module holds, and new keys after it."""

    keys: Tensor

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(17)
        self.register_buffer("keys", torch.randn(_HEADS, _SLOTS, _DIM, generator=drawn))

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Append keys [H, T, D] to two of the cache; return the attention of q over all."""
        keys = torch.cat([self.keys[:, :2], k], 1)
        return torch.softmax(q @ keys.transpose(-2, -1), -1) @ keys


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def _rms_by_power(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def _rms_by_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divide by the norm of the row, scaled by its largest first: no square overflows."""
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    part = x / largest
    return part / torch.sqrt((part * part).mean(-1, keepdim=True)) * weight


def _rms_in_fp32(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def _turned_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _turned_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * _DIM**-0.5 + mask, -1) @ v


def _by_truth(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1) * _DIM**-0.5).masked_fill(mask < 0, -1e4)
    return torch.softmax(scores, -1) @ v


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    many = _HEADS // _KV_HEADS
    return _attention(q, k.repeat_interleave(many, 1), v.repeat_interleave(many, 1), mask)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


_SUMS = (4e-6, 8 * 2.0**-11)
_MANY = (2e-5, 16 * 2.0**-11)  # of the largest: a block's dozens of steps
_ROWS = Given((_TOKENS, _WIDTH))
_COS, _SIN = Given((_TOKENS, _DIM // 2), fixed="cos"), Given((_TOKENS, _DIM // 2), fixed="sin")
_QUERIES = Given((1, _HEADS, _TOKENS, _DIM))
_KEYS = Given((1, _HEADS, _SLOTS, _DIM))
_FEW_KEYS = Given((1, _KV_HEADS, _SLOTS, _DIM))
_MASK = Given((_TOKENS, _SLOTS), fixed="mask")
_CACHE = Given((_KV_HEADS, _SLOTS, _DIM))


def _part(
    make: Callable[[], nn.Module], *inputs: Given, bounds: tuple[float, float] = _SUMS
) -> Subject:
    return Subject(make, inputs, "relative", bounds, group="language models")


def _norm(function: Callable[[Tensor, Tensor], Tensor]) -> Subject:
    kinds = (ORDINARY, *EXTREMES, "overflow")
    return Subject(lambda: Scaled(function), (_ROWS,), "relative", _SUMS, kinds, "language models")


def _attending(function: Callable[..., Tensor], keys: Given = _KEYS) -> Subject:
    return _part(lambda: Function(function), _QUERIES, keys, keys, _MASK)


MODELS: dict[str, Subject] = {
    "rms-norm": _norm(_rms),
    "rms-norm-by-power": _norm(_rms_by_power),
    "rms-norm-by-largest": _norm(_rms_by_norm),
    "rms-norm-in-fp32": _norm(_rms_in_fp32),
    "rms-norm-of-pytorch": _norm(lambda x, w: functional.rms_norm(x, (_WIDTH,), w, 1e-5)),
    "rope-pairs": _part(lambda: Function(_turned_pairs), _QUERIES, _COS, _SIN),
    "rope-halves": _part(lambda: Function(_turned_halves), _QUERIES, _COS, _SIN),
    "attention": _attending(_attention),
    "attention-masked-by-truth": _attending(_by_truth),
    "attention-grouped": _attending(_grouped, _FEW_KEYS),
    "attention-fused": _attending(_fused),
    "attention-over-buffer": _part(Growing, Given((_HEADS, 3, _DIM)), Given((_HEADS, 3, _DIM))),
    "gated-mlp": _part(Gated, _ROWS),
    "llama-block": _part(
        lambda: Block(False),
        _ROWS,
        _COS,
        _SIN,
        Given((_TOKENS, _TOKENS), fixed="mask"),
        bounds=_MANY,
    ),
    "llama-block-with-cache": _part(
        lambda: Block(True),
        _ROWS,
        _COS,
        _SIN,
        Given((_TOKENS, _SLOTS + _TOKENS), fixed="mask"),
        _CACHE,
        _CACHE,
        bounds=_MANY,
    ),
}
SUBJECTS = OPERATIONS | MODELS
