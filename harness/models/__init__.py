"""Language models in plain PyTorch: one row for each architecture, the oracle, quantization.

An architecture is a module with an `Architecture`: the names and shapes of its weights, the
function of one block, and the mask. `harness.models.config` lists these rows. Neither this module
nor the rows import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_SMALL_MODEL = 1 << 23  # elements; the weights of a smaller model are kept

Scheme = tuple[int, int] | None
"""Bits, and how many columns of a row share a scale (0: all of them); None: not quantized."""


@dataclass(frozen=True)
class Weight:
    """A weight by Meta's name and by Hugging Face's, without `layers.N.` and `.weight`.

    `shape` names sizes of the `ModelConfig`. RoPE rotates pairs of the rows of a `rotated` weight:
    Hugging Face stores the first rows of all pairs, then the second ones; Meta stores pair by pair.
    """

    name: str
    hugging_face: str
    shape: tuple[str, ...]
    rotated: bool = False


class Surroundings(NamedTuple):
    """The other inputs of a block: cosines and sines [T, D/2], and the mask [T, S]."""

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor


Cache = tuple["torch.Tensor", "torch.Tensor"]  # keys and values of one layer, [K, C, D] each
Block = Callable[..., tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]
"""(operations, layer, x, surroundings, cache or None) -> (new x, new rotated keys, new values).

`harness.models.model.Operations` has the operations; `layer` is the prefix `layers.N.` of the
block's weights."""


@dataclass(frozen=True)
class Architecture:
    """A family of models that differ in sizes and weights only.

    `params` holds the values of Meta's keys that choose it, with None for a key that may be absent;
    `config` the values that it allows in a `config.json`. `linears` and `norms` are the weights of
    a block, the norms in the order of computing. `groups` names the linear layers that read one
    value, in the same order: a program's weights are recognised by the groups and norms. `mask`
    computes from positions whether a query sees a key.
    """

    name: str
    params: Mapping[str, tuple[object, ...]]
    config: Mapping[str, tuple[object, ...]]
    linears: tuple[Weight, ...]
    norms: tuple[Weight, ...]
    groups: tuple[tuple[str, ...], ...]
    block: Block
    mask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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
    """Sizes and constants of a model; `harness.models.config.parse_params` validates them."""

    architecture: Architecture
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
    max_positions: int | None = field(default=None, compare=False)  # of its training, if stated

    @property
    def scale(self) -> float:
        """The factor of the products of queries and keys."""
        return self.attention_scale or self.head_dim**-0.5

    @property
    def q_size(self) -> int:
        """Rows of the queries' weight."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the keys' weight, and of the values'."""
        return self.n_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, ...]]:
        """Weight shapes `(out_features, in_features)` of the linear layers by Meta name."""
        return self._of_blocks(self.architecture.linears) | {
            "output.weight": (self.vocab_size, self.dim)
        }

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a complete checkpoint holds, by Meta name."""
        return {
            "tok_embeddings.weight": (self.vocab_size, self.dim),
            **self.linears,
            **self._of_blocks(self.architecture.norms),
            "norm.weight": (self.dim,),
        }

    @property
    def hugging_face_names(self) -> dict[str, str]:
        """Hugging Face's name of every tensor by Meta name."""
        names = {
            "tok_embeddings.weight": "model.embed_tokens.weight",
            "norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        }
        for weight in (*self.architecture.linears, *self.architecture.norms):
            for layer in range(self.n_layers):
                theirs = f"model.layers.{layer}.{weight.hugging_face}.weight"
                names[f"layers.{layer}.{weight.name}.weight"] = theirs
        return {name: names[name] for name in self.weight_shapes}

    @property
    def rotated_weights(self) -> tuple[str, ...]:
        """Meta's names of the weights with rows that RoPE rotates."""
        weights = (*self.architecture.linears, *self.architecture.norms)
        rotated = [weight.name for weight in weights if weight.rotated]
        return tuple(f"layers.{n}.{name}.weight" for n in range(self.n_layers) for name in rotated)

    def _of_blocks(self, weights: tuple[Weight, ...]) -> dict[str, tuple[int, ...]]:
        return {
            f"layers.{layer}.{weight.name}.weight": tuple(getattr(self, s) for s in weight.shape)
            for layer in range(self.n_layers)
            for weight in weights
        }


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


class Weights(Mapping[str, "torch.Tensor"]):
    """Weights by Meta's names; each access makes one, and only a small model's are kept.

    `makers` makes them, `size` is the number of their elements. `release` gives back what the
    makers hold, such as the pages of a mapped file; they take it again when they need it.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], torch.Tensor]],
        size: int,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.makers, self.size, self.release = dict(makers), size, release
        self._kept: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._kept:
            return self._kept[name]
        weight = self.makers[name]()
        if self.size < _SMALL_MODEL:
            self._kept[name] = weight
        return weight

    def __contains__(self, name: object) -> bool:
        return name in self.makers  # that of `Mapping` would make the weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)
