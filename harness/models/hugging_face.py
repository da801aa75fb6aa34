"""Translates Hugging Face's `config.json` and tensor names of a Llama to Meta's, without torch.

Each key of `config.json` is read, does not affect the maths of a forward pass, or must have its
neutral value. Source: `LlamaConfig` and `modeling_rope_utils.py` of transformers 4 and 5, which
spell the RoPE parameters differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import HarnessError

_SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "hidden_dim",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_eps",
}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_IGNORED = frozenset(
    (
        *("max_position_embeddings", "initializer_range", "attention_dropout", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "pretraining_tp"),
        *(
            "transformers_version",
            "_name_or_path",
            "_attn_implementation",
            "transformers.js_config",
        ),
        *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id"),
        *("problem_type", "chunk_size_feed_forward", "is_llama_config", "unsloth_version"),
        *("unsloth_fixed", "finetuning_task", "task_specific_params"),
    )
)
_MUST_BE: dict[str, tuple[object, ...]] = {
    "architectures": (["LlamaForCausalLM"], None),
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
_SCALING_KEYS = {
    "factor": "rope_scale_factor",
    "high_freq_factor": "high_freq_factor",
    "low_freq_factor": "low_freq_factor",
    "original_max_position_embeddings": "original_context_len",
}

_OF_MODEL = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_OF_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}


def is_config(params: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is transformers' `config.json`, not Meta's `params.json`."""
    return "model_type" in params or "hidden_size" in params


def meta_params(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a `config.json` as the keys that :func:`harness.models.config.parse_params` takes.

    Raises HarnessError that names the file and the unsupported key.
    """
    for key, value in config.items():
        _refuse(key, value, where)
    tied = config.get("tie_word_embeddings", False)
    params = {ours: config[name] for name, ours in _SIZES.items() if config.get(name) is not None}
    return params | {"tied": tied} | dict(_rope(config, where))


def tensor_name(meta_name: str) -> str:
    """Return Hugging Face's name of the tensor that Meta calls `meta_name`."""
    if meta_name in _OF_MODEL:
        return _OF_MODEL[meta_name]
    _, layer, rest = meta_name.split(".", 2)
    return f"model.layers.{layer}.{_OF_BLOCK[rest.removesuffix('.weight')]}.weight"


def _refuse(key: str, value: object, where: str) -> None:
    if key in _MUST_BE:
        if not any(value == neutral for neutral in _MUST_BE[key]):
            allowed = " or ".join(json.dumps(neutral) for neutral in _MUST_BE[key])
            raise HarnessError(
                f"{where}: {key} = {json.dumps(value)} is not supported; only {allowed} is"
            )
    elif key not in (*_SIZES, *_ROPE, *_IGNORED, "tie_word_embeddings"):
        raise HarnessError(
            f"{where}: unknown key {key!r}; remove it, if it does not change the model"
        )


def _rope(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield RoPE's parameters as Meta's keys: transformers 5 has `rope_parameters`, 4 two keys."""
    key = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    rope = config.get(key) or {}
    if not isinstance(rope, dict):
        raise HarnessError(f"{where}: {key} must be an object, not {rope!r}")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is not None:
        yield "rope_theta", theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return
    if kind != "llama3":
        raise HarnessError(
            f"{where}: {key} of type {kind!r} is not supported; only 'default' and 'llama3' are"
        )
    if missing := [name for name in _SCALING_KEYS if name not in rope]:
        raise HarnessError(f"{where}: {key} of type 'llama3' lacks {', '.join(missing)}")
    yield "use_scaled_rope", True
    for name, ours in _SCALING_KEYS.items():
        yield ours, rope[name]
