"""Qwen3: a Llama whose queries and keys are normalized head by head before RoPE.

Source: `modeling_qwen3.py` of transformers; ExecuTorch's `use_qk_norm` with `qk_norm_before_rope`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models import Architecture, Cache, Surroundings, Weight, llama

if TYPE_CHECKING:
    import torch

    from harness.models.model import Operations

# RoPE pairs the columns that these weigh: they follow the order of the queries' and keys' rows
Q_NORM = Weight("attention.q_norm_fn", "self_attn.q_norm", ("head_dim",), rotated=True)
K_NORM = Weight("attention.k_norm_fn", "self_attn.k_norm", ("head_dim",), rotated=True)


def block(
    ops: Operations, layer: str, x: torch.Tensor, around: Surroundings, past: Cache | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute one block over x [..., T, dim]: the new x, new keys and values [..., K, T, D]."""
    q, k, v = llama.project(ops, layer, x)
    q = ops.norm(f"{layer}attention.q_norm_fn", q)
    k = ops.norm(f"{layer}attention.k_norm_fn", k)
    return llama.mix(ops, layer, x, q, k, v, around, past)


QWEN3 = Architecture(
    name="Qwen3",
    params={
        "use_qk_norm": (True,),
        "qk_norm_before_rope": (True,),
        "qk_norm_affine": (True, None),
    },
    config={
        "model_type": ("qwen3",),
        "architectures": (["Qwen3ForCausalLM"], None),
        "use_sliding_window": (False,),
        "layer_types": ("full_attention", None),
    },
    linears=llama.LINEARS,
    norms=(llama.ATTENTION_NORM, Q_NORM, K_NORM, llama.FFN_NORM),
    groups=llama.GROUPS,
    block=block,
    mask=llama.causal,
)
