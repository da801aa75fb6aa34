"""A Llama for a Session without an artifact, with the exporter's methods and constants.

The expected values come from `harness.models.model.Llama`, which sees the whole sequence at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch

from harness.generate.layout import parse_layout
from harness.generate.phase import Constants
from harness.generate.session import Session
from harness.models import ModelConfig
from harness.models.llama import LLAMA
from harness.models.model import Oracle, StaticModel, rope_tables
from harness.pte import TensorSpec

VOCAB = 40


def small_config(n_layers: int = 2) -> ModelConfig:
    return ModelConfig(
        architecture=LLAMA,
        dim=16, n_layers=n_layers, n_heads=4, n_kv_heads=2, head_dim=4, hidden_dim=24,
        vocab_size=VOCAB,
    )  # fmt: skip


def random_weights(config: ModelConfig, layers: float = 1.0) -> dict[str, torch.Tensor]:
    """Return seeded weights; those of the layers are multiplied by `layers`.

    With a small `layers`, the next token depends on the last one most, so that text repeats itself.
    """
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        * (0.5 * layers if name.startswith("layers.") else 0.5)
        for name, shape in config.weight_shapes.items()
    }


@dataclass
class EagerMethod:
    """A StaticModel with the specs of an exported method; it refuses other shapes and dtypes."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: StaticModel
    calls: int = 0

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert [tuple(t.shape) for t in tensors] == [spec.shape for spec in self.inputs]
        for tensor, spec in zip(tensors, self.inputs, strict=True):
            assert "float" in spec.dtype or str(tensor.dtype) == f"torch.{spec.dtype}"
        self.calls += 1
        return self.model(*tensors)


@dataclass
class EagerModel:
    """A model's methods, constants, and oracle."""

    constants: dict[str, bool | int | float | str | numpy.ndarray]
    methods: dict[str, EagerMethod]
    oracle: Oracle

    def session(self) -> Session:
        return Session(self.methods, parse_layout(self.constants, self.methods))

    def recomputed(self, prompt: list[int], n: int) -> list[int]:
        """Return the oracle's own greedy tokens, computing the whole sequence again for each."""
        tokens = list(prompt)
        for _ in range(n):
            tokens.append(int(self.oracle(torch.tensor(tokens))[0][-1].argmax()))
        return tokens[len(prompt) :]


def eager_model(
    mode: str,
    input_len: int,
    context: int,
    n_layers: int = 2,
    dtype: torch.dtype = torch.float64,
    layers: float = 1.0,
) -> EagerModel:
    """Return a random model, the same in both modes, declared fp16 and computing in `dtype`."""
    config = small_config(n_layers)
    weights = random_weights(config, layers)
    model = StaticModel(config, weights, dtype)
    tables = [table.numpy() for table in rope_tables(config, context)]
    constants: Constants = {
        "vocab_size": VOCAB,
        "head_dim": config.head_dim,
        "n_heads_per_cache": config.n_kv_heads,
        "freqs_cos": tables[0],
        "freqs_sin": tables[1],
    }
    single = mode == "single"
    phases = [("", "forward", input_len)] if single else [
        ("decode_", "forward", 1), ("prefill_", "prefill", input_len)
    ]  # fmt: skip
    cache_len = context - input_len if single else context - 1
    methods = {}
    for prefix, name, length in phases:
        methods[name] = EagerMethod(
            name,
            input_specs(config, length, cache_len, last_valid=not single),
            output_specs(config, length, full_logits=single),
            model,
        )
        constants |= phase_constants(prefix, length, cache_len, config.n_layers)
    return EagerModel(constants, methods, Oracle(config, weights))


def input_specs(
    config: ModelConfig, length: int, cache_len: int, last_valid: bool
) -> tuple[TensorSpec, ...]:
    cache = (1, config.n_kv_heads, cache_len, config.head_dim)
    freqs = (length, config.head_dim // 2)
    rows = [
        ("tokens", (1, length), "int32"),
        ("mask", (1, length, cache_len + length), "float16"),
        ("cos", freqs, "float16"),
        ("sin", freqs, "float16"),
        *((f"k{layer}", cache, "float16") for layer in range(config.n_layers)),
        *((f"v{layer}", cache, "float16") for layer in range(config.n_layers)),
        *([("last_valid_token_pos", (1,), "int64")] if last_valid else []),
    ]
    return tuple(TensorSpec(*row) for row in rows)


def output_specs(config: ModelConfig, length: int, full_logits: bool) -> tuple[TensorSpec, ...]:
    update = (1, config.n_kv_heads, length, config.head_dim)
    logits = TensorSpec("logits", (1, length if full_logits else 1, config.vocab_size), "float16")
    updates = (TensorSpec(f"update{i}", update, "float16") for i in range(2 * config.n_layers))
    return (logits, *updates)


def phase_constants(
    prefix: str, length: int, cache_len: int, n_layers: int
) -> dict[str, int | numpy.ndarray]:
    """Return the constants that the exporter writes for one method, including its sort by text."""
    rows = [
        [4 + layer, 1 + row, 4 + n_layers + layer, 1 + n_layers + row, cache_len]
        for row, layer in enumerate(sorted(range(n_layers), key=lambda layer: f"l{layer},h0"))
    ]
    return {
        f"{prefix or 'forward_'}input_len": length,
        f"{prefix}mask_specs": numpy.array([[1, cache_len]]),
        f"{prefix}freqs_cos_input_index": numpy.array([2]),
        f"{prefix}freqs_sin_input_index": numpy.array([3]),
        f"{prefix}kv_cache_specs": numpy.array(rows),
    }
