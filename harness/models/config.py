"""Reads a model's sizes from Meta's `params.json` or Hugging Face's `config.json`, without torch.

A key of Meta's describes the model (`_READ`), does not affect the maths of one forward pass
(`_IGNORED`), or changes the maths (`_MUST_BE`). A key of the last kind may only have its neutral
value: an oracle that skipped such a key would blame the artifact for its own mistake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.models import hugging_face

MAX_PARAMS_BYTES = 1 << 20  # a params.json is a few hundred bytes: more is another file
MAX_SIZE = 1 << 24  # far above any dimension of a Llama; limits what is allocated from it
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

Scheme = tuple[int, int] | None
"""Bits, and how many columns of a row share a scale (0: all of them); None: not quantized."""


@dataclass(frozen=True)
class Quantization:
    """How an artifact holds weights: float dtype (`fp16` or `fp32`), and how it quantizes them."""

    dtype: str
    embedding: Scheme = None
    linear: Scheme = None

    def schemes(self, config: ModelConfig) -> dict[str, Scheme]:
        """Return the scheme of each weight that may be quantized, by Meta name."""
        linears = dict.fromkeys(config.linears, self.linear)
        return linears | {"tok_embeddings.weight": self.embedding}


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches the low RoPE frequencies.

    Source: `rope_type: llama3` in transformers' `modeling_rope_utils.py`. The defaults are Meta's:
    its files never give the low factor and the original context length.
    """

    factor: float = 8.0
    high_freq_factor: float = 4.0
    low_freq_factor: float = 1.0
    original_context_len: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a Llama; :func:`parse_params` validates every field."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    attention_scale: float | None = None  # None: the exact one; an artifact holds a rounded one
    tied: bool | None = None  # whether the output layer is the embedding; None: the file decides

    @property
    def scale(self) -> float:
        """The factor of the products of queries and keys."""
        return self.attention_scale or self.head_dim**-0.5

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Weight shapes `(out_features, in_features)` of the linear layers by Meta name."""
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        of_block = {
            "attention.wq": (q_size, self.dim),
            "attention.wk": (kv_size, self.dim),
            "attention.wv": (kv_size, self.dim),
            "attention.wo": (self.dim, q_size),
            "feed_forward.w1": (self.hidden_dim, self.dim),
            "feed_forward.w2": (self.dim, self.hidden_dim),
            "feed_forward.w3": (self.hidden_dim, self.dim),
        }
        shapes = {
            f"layers.{layer}.{name}.weight": shape
            for layer in range(self.n_layers)
            for name, shape in of_block.items()
        }
        return shapes | {"output.weight": (self.vocab_size, self.dim)}

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a complete checkpoint holds, by Meta name."""
        norms = [
            f"layers.{layer}.{norm}.weight"
            for layer in range(self.n_layers)
            for norm in ("attention_norm", "ffn_norm")
        ]
        return {
            "tok_embeddings.weight": (self.vocab_size, self.dim),
            **self.linears,
            **dict.fromkeys([*norms, "norm.weight"], (self.dim,)),
        }


def load_params(path: str | Path) -> ModelConfig:
    """Read Meta's `params.json`, or the `config.json` of a Llama in transformers.

    Raises HarnessError with the file's name and the key at fault.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PARAMS_BYTES + 1)
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}") from error
    if len(text) > MAX_PARAMS_BYTES:
        raise HarnessError(f"{path} is larger than 1 MiB: this is not a params.json")
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{path} is not JSON: {error}") from error
    if not isinstance(params, dict):
        raise HarnessError(f'{path} must hold a JSON object, such as {{"dim": 576, ...}}')
    if hugging_face.is_config(params):
        params = hugging_face.meta_params(params, str(path))
    return parse_params(params, str(path))


def parse_params(params: Mapping[str, Any], where: str = "params") -> ModelConfig:
    """Validate the content of a `params.json`; `where` names it in errors."""
    _refuse_unsupported(params, where)
    read = _Params(params, where)
    dim, n_heads = read.size("dim"), read.size("n_heads")
    config = ModelConfig(
        dim=dim,
        n_layers=read.size("n_layers"),
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


def _refuse_unsupported(params: Mapping[str, Any], where: str) -> None:
    for key, value in params.items():
        if key in _MUST_BE:
            if not any(value == neutral for neutral in _MUST_BE[key]):
                raise HarnessError(
                    f"{where}: {key} = {json.dumps(value)} changes the maths and is not supported; "
                    f"only {' or '.join(json.dumps(v) for v in _MUST_BE[key])} is"
                )
        elif key not in (*_READ, *_IGNORED):
            raise HarnessError(
                f"{where}: unknown key {key!r}; remove it, if it does not change the model"
            )


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

    def size(self, key: str, default: int | None = None) -> int:
        value = self.params[key] if self.given(key) else default
        if value is None:
            raise HarnessError(f"{self.where}: {key} is missing")
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            raise HarnessError(
                f"{self.where}: {key} must be a whole number from 1 to {MAX_SIZE}, not {value!r}"
            )
        return value

    def positive(self, key: str, default: float) -> float:
        value = self.params[key] if self.given(key) else default
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise HarnessError(f"{self.where}: {key} must be a number above 0, not {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.params.get(key) or False
        if value is not True and value is not False:
            raise HarnessError(f"{self.where}: {key} must be true or false, not {value!r}")
        return value
