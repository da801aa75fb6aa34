"""Llama: RMSNorm, causal grouped attention with RoPE, and a gated feed forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models import Architecture, Cache, Surroundings, Weight

if TYPE_CHECKING:
    import torch

    from harness.models.model import Operations

LINEARS = (
    Weight("attention.wq", "self_attn.q_proj", ("q_size", "dim"), rotated=True),
    Weight("attention.wk", "self_attn.k_proj", ("kv_size", "dim"), rotated=True),
    Weight("attention.wv", "self_attn.v_proj", ("kv_size", "dim")),
    Weight("attention.wo", "self_attn.o_proj", ("dim", "q_size")),
    Weight("feed_forward.w1", "mlp.gate_proj", ("hidden_dim", "dim")),
    Weight("feed_forward.w2", "mlp.down_proj", ("dim", "hidden_dim")),
    Weight("feed_forward.w3", "mlp.up_proj", ("hidden_dim", "dim")),
)
ATTENTION_NORM = Weight("attention_norm", "input_layernorm", ("dim",))
FFN_NORM = Weight("ffn_norm", "post_attention_layernorm", ("dim",))
GROUPS = (
    ("attention.wq", "attention.wk", "attention.wv"),
    ("attention.wo",),
    ("feed_forward.w1", "feed_forward.w3"),
    ("feed_forward.w2",),
)


def block(
    ops: Operations, layer: str, x: torch.Tensor, around: Surroundings, past: Cache | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute one block over x [..., T, dim]; return x, the new keys and values [..., K, T, D]."""
    return mix(ops, layer, x, *project(ops, layer, x), around, past)


def project(
    ops: Operations, layer: str, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x's queries [..., H, T, D], keys and values [..., K, T, D], before RoPE."""
    normed = ops.norm(f"{layer}attention_norm", x)
    q = ops.heads(f"{layer}attention.wq", normed)
    k = ops.heads(f"{layer}attention.wk", normed)
    v = ops.heads(f"{layer}attention.wv", normed)
    return q, k, v


def mix(
    ops: Operations,
    layer: str,
    x: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    around: Surroundings,
    past: Cache | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate and attend, then feed forward; return x, the rotated keys, and the values."""
    q = ops.rotate(f"{layer}queries", q, around)
    k = ops.rotate(f"{layer}keys", k, around)
    all_k = ops.join(f"{layer}keys", past and past[0], k)
    all_v = ops.join(f"{layer}values", past and past[1], v)
    attended = ops.attend(layer, q, all_k, all_v, around.mask)
    added = ops.linear(f"{layer}attention.wo", attended)
    x = ops.tap(f"{layer}after attention", x + added)
    added = ops.feed_forward(layer, ops.norm(f"{layer}ffn_norm", x))
    return ops.tap(f"{layer}after feed forward", x + added), k, v


def causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return whether a query sees a key: the key's position must not be later."""
    return key <= query


LLAMA = Architecture(
    name="Llama",
    params={},
    config={"model_type": ("llama",), "architectures": (["LlamaForCausalLM"], None)},
    linears=LINEARS,
    norms=(ATTENTION_NORM, FFN_NORM),
    groups=GROUPS,
    block=block,
    mask=causal,
)
