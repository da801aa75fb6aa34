"""The keys of Meta's `params.json`, each in one of three tables.

It describes the model (`READ`), it does not touch the maths of one forward pass (`IGNORED`), or
it would change the maths in a way that this package does not compute (`MUST_BE`), and then any
value but the neutral one is refused. An oracle that skips over a key would blame the artifact for
its own mistake.
"""

from __future__ import annotations

READ = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size"),
    *("multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta", "rope_freq_base"),
    *("use_scaled_rope", "rope_scale_factor", "high_freq_factor", "low_freq_factor"),
    *("original_context_len", "tied"),
)
IGNORED = (
    *("max_batch_size", "max_seq_len", "bos_idx", "eos_idx", "bos_count", "eos_count"),
    *("device", "model_architecture"),
    # these act only beside a key that MUST_BE refuses
    *("num_experts", "num_activated_experts", "qk_norm_before_rope", "qk_norm_affine"),
)
MUST_BE: dict[str, tuple[object, ...]] = {
    "moe": (False,),
    "sliding_window": (None,),
    "layer_types": (None,),
    "mlp_type": (None,),
    "use_qk_norm": (False,),
    "attention_qkv_bias": (False,),
    "output_bias": (False,),
    "use_q_gate": (False,),
    "use_attn_o_gate": (False,),
    "use_attn_o_norm": (False,),
    "use_residual_gate": (False,),
    "use_ffn_learnable_scales": (False,),
    "use_ffn_norm": (True,),
    "post_attention_norm": (False,),
    "post_ffn_norm": (False,),
    "norm_type": ("rmsnorm",),
    "rms_norm_add_unit_offset": (False,),
    "normalize_tok_embeddings": (False,),
    "act_fn": ("silu",),
    "attention_type": ("mha", "static_mha"),
    "attention_multiplier": (None,),
    "scale_query_by": (1.0,),
    "embedding_scale_factor": (1.0,),
    "residual_multiplier": (None,),
    "logits_scaling": (None,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "output_soft_cap_temp": (None,),
    "output_linear_intermediate_dim": (0,),
    "num_kv_shared_layers": (0,),
    "no_rope_layer_interval": (None,),
    "partial_rotary_factor": (1.0,),
    "use_hf_rope": (False,),
    "rope_scaling_short_factor": (None,),
    "rope_scaling_long_factor": (None,),
    "rope_scaling_attention_factor": (None, 1.0),
    "apply_embedding": (True,),
    "apply_output": (True,),
    "input_prune_map": (None,),
    "output_prune_map": (None,),
    "quantization_args": (None,),
    "lora_args": (None,),
    "r": (None,),
    "lora_alpha": (None,),
    "target_modules": (None,),
}
