"""Reads a model's weights from Meta's or Hugging Face's files and checks them against a config.

A checkpoint without an output layer has tied embeddings: `output.weight` becomes the very tensor
of `tok_embeddings.weight`. ExecuTorch's static exporter does not support tying: it prints the
missing key and goes on with an output layer on the meta device, which cannot be lowered.
:mod:`harness.export._executorch_child` therefore fills the layer in the exporter's own model.

Hugging Face rotates the first half of a head's columns against the second half. Meta rotates
neighbouring columns. The two therefore order the rows of queries and keys differently. This module
copies these rows into Meta's order; it copies no other weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.models import ModelConfig, Quantization, Scheme
from harness.models.quantize import DTYPES
from harness.models.tensor_files import read_tensors

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_LISTED = 8


@dataclass(frozen=True)
class _Layout:
    """How a family of checkpoints names its tensors and orders the rows that RoPE rotates."""

    names: Callable[[ModelConfig], dict[str, str]]  # Meta's name of a tensor -> the family's
    unused: str  # a pattern of tensors that are computed from the config instead
    interleaved: bool


_META = _Layout(
    names=lambda config: {name: name for name in config.weight_shapes},
    unused=r"rope\.freqs",
    interleaved=True,
)
_HUGGING_FACE = _Layout(
    names=lambda config: config.hugging_face_names,
    unused=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    interleaved=False,
)


def load_checkpoint(
    path: str | Path, config: ModelConfig, quantization: Quantization | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights by Meta name, memory-mapped, in the dtype of the file.

    `path` is a file written by `torch.save`, a safetensors file, the index of several, or a folder
    that holds one of these. No code in the file is executed. With a `quantization`, the values are
    read too: a value that an artifact with this quantization cannot hold is an error. Raises
    HarnessError that lists the missing, unexpected and misshapen tensors.
    """
    found = read_tensors(Path(path))
    layout = _layout_of(found)
    tensors = {k: v for k, v in found.items() if not re.fullmatch(layout.unused, str(k))}
    names = layout.names(config)
    shapes = {names[meta]: shape for meta, shape in config.weight_shapes.items()}
    problems = _tie(tensors, names, config) + _problems(tensors, shapes)
    if problems:
        raise HarnessError(f"{path} does not fit its params: {_listed(problems)}")
    if quantization is not None:
        dtype, schemes = quantization.dtype, quantization.schemes(config)
        by_name = {names[meta]: scheme for meta, scheme in schemes.items()}
        if bad := list(_beyond({name: tensors[name] for name in shapes}, by_name, dtype)):
            raise HarnessError(f"{path} cannot be exported in {dtype}: {_listed(bad)}")
    weights = {meta: tensors[name] for meta, name in names.items()}
    return weights if layout.interleaved else _interleaved(weights, config)


def _layout_of(names: Iterable[Any]) -> _Layout:
    """Return the layout of most names; a stray name of the other layout is reported later."""
    prefixed = [str(name).startswith(("model.", "lm_head.")) for name in names]
    return _HUGGING_FACE if 2 * sum(prefixed) > len(prefixed) else _META


def is_tied(weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the output layer is the embedding table itself."""
    return weights["output.weight"] is weights["tok_embeddings.weight"]


def _tie(tensors: dict[Any, Any], names: Mapping[str, str], config: ModelConfig) -> list[str]:
    """Make a tied output layer the embedding tensor; return the problems that forbid it."""
    embedding, output = names["tok_embeddings.weight"], names["output.weight"]
    if config.tied is False or embedding not in tensors:
        return []
    if output not in tensors:
        tensors[output] = tensors[embedding]
    elif config.tied:
        if not _equal(tensors[output], tensors[embedding]):
            return [f"{output} differs from {embedding}, although tie_word_embeddings is true"]
        tensors[output] = tensors[embedding]
    return []


def _equal(one: Any, other: Any) -> bool:
    both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return both and one.dtype == other.dtype and torch.equal(one, other)


def _listed(problems: list[str]) -> str:
    shown = "; ".join(problems[:MAX_LISTED])
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    return shown + more


def _problems(tensors: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [f"{name} is missing" for name in shapes if name not in tensors]
    extra = [f"{name!r} is not expected" for name in tensors if name not in shapes]
    wrong = []
    for name, shape in shapes.items():
        if (value := tensors.get(name)) is None:
            continue
        if not isinstance(value, torch.Tensor) or value.dtype not in FLOAT_DTYPES:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            wrong.append(f"{name} is {kind}, not a floating-point tensor")
        elif tuple(value.shape) != shape:
            wrong.append(f"{name} has shape {list(value.shape)}, not {list(shape)}")
    return missing + extra + wrong


def _interleaved(weights: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Put the rows that RoPE rotates into Meta's order: halves of a head become pairs."""
    rotated = config.rotated_weights
    return {
        name: pairs_of_halves(weight, config.head_dim) if name in rotated else weight
        for name, weight in weights.items()
    }


def pairs_of_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return a weight with its rows, halves of each head in Hugging Face's order, in Meta's."""
    halves = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def halves_of_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return a weight with its rows, pairs in Meta's order, in Hugging Face's."""
    pairs = weight.reshape(-1, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _beyond(
    weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme], dtype: str
) -> Iterator[str]:
    """Yield a sentence for each weight that holds NaN or infinity or becomes infinite in `dtype`.

    `schemes` has the names of `weights`. Each weight is read once and not copied.
    """
    largest = torch.finfo(DTYPES[dtype]).max
    for name, weight in weights.items():
        low, high = ends = [float(end) for end in weight.aminmax()]  # NaN if the weight has one
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"{name} holds {'NaN' if math.isnan(low) else 'an infinity'}"
            continue
        low, high = _cast(low, dtype), _cast(high, dtype)
        lowest = _cast(_lowest(low, high, schemes.get(name)), dtype)
        if not (math.isfinite(lowest) and math.isfinite(high)):
            most = max(map(abs, ends))
            yield f"{name} reaches {most:.6g}, too much for {dtype}, which ends at {largest:.6g}"


def _cast(value: float, dtype: str) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(DTYPES[dtype]))


def _lowest(low: float, high: float, scheme: Scheme) -> float:
    """Return the value that quantization may make of the lowest one.

    4-bit integers reach down to -8 scales, and a scale is 1/7.5 of the largest magnitude.
    """
    if scheme is None:
        return low
    bits, _ = scheme
    return low * 2**bits / (2**bits - 1) if -low >= high else low
