"""Reads a model's sizes from Meta's `params.json` or Hugging Face's `config.json`, without torch.

A key of Meta's describes the model (`_READ`), does not affect the maths of one forward pass
(`_IGNORED`), or changes the maths (`_MUST_BE`). A key of the last kind may only have its neutral
value, or one that chooses an architecture of `ARCHITECTURES`: an oracle that skipped such a key
would blame the artifact for its own mistake. The same holds for `config.json`, whose keys are
translated to Meta's. Source: `LlamaConfig`, `Qwen3Config` and `modeling_rope_utils.py` of
transformers 4 and 5, which spell the RoPE parameters differently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.models import Architecture, ModelConfig, RopeScaling
from harness.models.llama import LLAMA
from harness.models.qwen3 import QWEN3
from harness.text import clip, params_in, parse_json, read_file

ARCHITECTURES = (QWEN3, LLAMA)
"""A model has the first architecture whose `params` fit; Llama, which needs none, is the last."""

MAX_PARAMS_BYTES = 1 << 20  # a params.json is a few hundred bytes: more is another file
MAX_SIZE = 1 << 24  # far above any dimension of a Llama; limits what is allocated from it
MAX_NUMBER = 1e30  # of factors and bases; products of a few stay finite
MAX_LAYERS = 4096  # each has a dozen names of weights; no published model has 200
_READ = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size"),
    *("multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta", "rope_freq_base"),
    *("use_scaled_rope", "rope_scale_factor", "high_freq_factor", "low_freq_factor"),
    *("original_context_len", "tied"),
)
_IGNORED = (
    *("max_batch_size", "max_seq_len", "bos_idx", "eos_idx", "bos_count", "eos_count"),
    *("device", "model_architecture"),
    # these act only beside a key that MUST_BE refuses
    *("num_experts", "num_activated_experts", "qk_norm_before_rope", "qk_norm_affine"),
)
_MUST_BE: dict[str, tuple[object, ...]] = {
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

_HF_SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "hidden_dim",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_eps",
}
_HF_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_HF_IGNORED = frozenset(
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
        "max_window_layers",  # where a sliding window begins: there is none
        *("unsloth_fixed", "finetuning_task", "task_specific_params"),
    )
)
_HF_MUST_BE: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
_HF_SCALING = {
    "factor": "rope_scale_factor",
    "high_freq_factor": "high_freq_factor",
    "low_freq_factor": "low_freq_factor",
    "original_max_position_embeddings": "original_context_len",
}


def load_params(path: str | Path) -> ModelConfig:
    """Read Meta's `params.json`, or the `config.json` of a known architecture in transformers.

    A folder means the file of one of these names in it.
    Raises HarnessError with the file's name and the key at fault.
    """
    path = params_in(Path(path)) if Path(path).is_dir() else Path(path)
    text = read_file(path, MAX_PARAMS_BYTES, "a params.json")
    try:
        params = parse_json(text)
    except ValueError as error:
        raise HarnessError(f"{path} is not JSON: {error}") from error
    if not isinstance(params, dict):
        raise HarnessError(f'{path} must hold a JSON object, such as {{"dim": 576, ...}}')
    if "model_type" not in params and "hidden_size" not in params:
        return parse_params(params, str(path))
    stated = params.get("max_position_embeddings")  # of transformers' config.json
    positions = stated if type(stated) is int and stated > 0 else None
    config = parse_params(_meta_params(params, str(path)), str(path))
    return replace(config, max_positions=positions)


def parse_params(params: Mapping[str, Any], where: str = "params") -> ModelConfig:
    """Validate the content of a `params.json`; `where` names it in errors."""
    architecture = next(
        row
        for row in ARCHITECTURES
        if all(params.get(key) in allowed for key, allowed in row.params.items())
    )
    _refuse_unsupported(params, architecture, where)
    read = _Params(params, where)
    dim, n_heads = read.size("dim"), read.size("n_heads")
    config = ModelConfig(
        architecture=architecture,
        dim=dim,
        n_layers=read.size("n_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=read.size("n_kv_heads", n_heads),
        head_dim=read.size("head_dim", dim // n_heads),
        hidden_dim=read.size("hidden_dim", _hidden_dim(dim, read)),
        vocab_size=read.size("vocab_size"),
        norm_eps=read.positive("norm_eps", 1e-5),
        rope_theta=read.positive("rope_theta", read.positive("rope_freq_base", 10000.0)),
        rope_scaling=_rope_scaling(read),
        tied=read.flag("tied") if read.given("tied") else None,
    )
    if config.n_heads % config.n_kv_heads:
        raise HarnessError(
            f"{where}: n_heads {config.n_heads} is not a multiple of n_kv_heads "
            f"{config.n_kv_heads}; every key-value head must have the same number of query heads"
        )
    if config.head_dim % 2:
        raise HarnessError(f"{where}: head_dim {config.head_dim} is odd; RoPE rotates pairs")
    return config


def _refuse_unsupported(params: Mapping[str, Any], architecture: Architecture, where: str) -> None:
    for key, value in params.items():
        if key in architecture.params:
            continue
        if key in _MUST_BE:
            if value not in _MUST_BE[key]:
                only = " or ".join(json.dumps(one) for one in _MUST_BE[key])
                raise HarnessError(
                    f"{where}: {key} = {clip(json.dumps(value), 80)} changes the maths and is not "
                    f"supported; only {only} is{_needs(key)}"
                )
        elif key not in (*_READ, *_IGNORED):
            raise HarnessError(
                f"{where}: unknown key {key!r:.80}; remove it, if it does not change the model"
            )


def _needs(key: str) -> str:
    """Return the keys that an architecture with this key needs, "" if there is none."""
    rows = [row for row in ARCHITECTURES if key in row.params]
    needed = [f"{k} {json.dumps(v[0])}" for row in rows for k, v in row.params.items()]
    return f"; {rows[0].name} needs {', '.join(needed)}" if rows else ""


def _hidden_dim(dim: int, read: _Params) -> int:
    """Return the feed-forward width by Meta's rule: 8/3 of dim, scaled, rounded up."""
    hidden = int(2 * (4 * dim) / 3)
    if read.given("ffn_dim_multiplier"):
        hidden = int(read.positive("ffn_dim_multiplier", 1.0) * hidden)
    multiple = read.size("multiple_of", 256)
    return multiple * math.ceil(hidden / multiple)


def _rope_scaling(read: _Params) -> RopeScaling | None:
    if not read.flag("use_scaled_rope"):
        return None
    low, high = read.positive("low_freq_factor", 1.0), read.positive("high_freq_factor", 4.0)
    if high <= low:
        raise HarnessError(f"{read.where}: high_freq_factor must be above {low:g}, not {high:g}")
    return RopeScaling(
        factor=read.positive("rope_scale_factor", 8.0),
        high_freq_factor=high,
        low_freq_factor=low,
        original_context_len=read.size("original_context_len", 8192),
    )


@dataclass(frozen=True)
class _Params:
    """Reads values from params and checks their types; null counts as not given."""

    params: Mapping[str, Any]
    where: str

    def given(self, key: str) -> bool:
        return self.params.get(key) is not None

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        value = self.params[key] if self.given(key) else default
        if value is None:
            raise HarnessError(f"{self.where}: {key} is missing")
        if type(value) is not int or not 0 < value <= most:
            raise HarnessError(
                f"{self.where}: {key} must be a whole number from 1 to {most}, not {value!r:.80}"
            )
        return value

    def positive(self, key: str, default: float) -> float:
        value = self.params[key] if self.given(key) else default
        if type(value) not in (int, float) or not 0 < value <= MAX_NUMBER:
            raise HarnessError(
                f"{self.where}: {key} must be a number above 0 and at most {MAX_NUMBER:g}, "
                f"not {value!r:.80}"
            )
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.params.get(key) or False
        if value is not True and value is not False:
            raise HarnessError(f"{self.where}: {key} must be true or false, not {value!r:.80}")
        return value


def _meta_params(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a `config.json` as the keys that `parse_params` takes.

    Raises HarnessError that names the file and the unsupported key.
    """
    kind = config.get("model_type", "llama")
    known = {str(row.config["model_type"][0]): row for row in reversed(ARCHITECTURES)}
    architecture = known.get(kind) if isinstance(kind, str) else None
    if architecture is None:
        raise _unsupported(where, "model_type", kind, list(known))
    for key, value in config.items():
        _check_key(key, value, {**_HF_MUST_BE, **architecture.config}, where)
    tied = config.get("tie_word_embeddings", False)
    params = {
        ours: config[name] for name, ours in _HF_SIZES.items() if config.get(name) is not None
    }
    chosen_by = {key: values[0] for key, values in architecture.params.items()}
    return params | {"tied": tied} | chosen_by | dict(_rope(config, where))


def _check_key(
    key: str, value: object, must_be: Mapping[str, Sequence[object]], where: str
) -> None:
    """Raise HarnessError for an unsupported key of a `config.json`.

    A list is allowed if all its elements are, as in `layer_types`.
    """
    if key in must_be:
        values = value if isinstance(value, list) and value else [value]
        if value not in must_be[key] and any(one not in must_be[key] for one in values):
            raise _unsupported(where, key, value, must_be[key])
    elif key not in (*_HF_SIZES, *_HF_ROPE, *_HF_IGNORED, "tie_word_embeddings"):
        raise HarnessError(
            f"{where}: unknown key {key!r:.80}; remove it, if it does not change the model"
        )


def _unsupported(where: str, key: str, value: object, allowed: Sequence[object]) -> HarnessError:
    only = " or ".join(json.dumps(one) for one in allowed)
    found = clip(json.dumps(value), 80)
    return HarnessError(f"{where}: {key} = {found} is not supported; only {only} is")


def _rope(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield RoPE's parameters as Meta's keys: transformers 5 has `rope_parameters`, 4 two keys."""
    key = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    rope = config.get(key) or {}
    if not isinstance(rope, dict):
        raise HarnessError(f"{where}: {key} must be an object, not {rope!r:.80}")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is not None:
        yield "rope_theta", theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return
    if kind != "llama3":
        raise HarnessError(
            f"{where}: {key} of type {kind!r:.80} is not supported; only 'default' and 'llama3' are"
        )
    if missing := [name for name in _HF_SCALING if name not in rope]:
        raise HarnessError(f"{where}: {key} of type 'llama3' lacks {', '.join(missing)}")
    yield "use_scaled_rope", True
    for name, ours in _HF_SCALING.items():
        yield ours, rope[name]
