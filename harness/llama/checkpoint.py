"""Weights from a Meta-style checkpoint file (``.pth``), checked against a config.

A checkpoint without ``output.weight`` has tied embeddings: ``output.weight`` becomes the very
tensor of ``tok_embeddings.weight``. ExecuTorch's static exporter does not know of tying: it prints
the missing key and goes on with an output layer on the meta device, which cannot be lowered.
:mod:`harness.export._executorch_child` therefore fills the layer in the exporter's own model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.llama.config import LlamaConfig

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNUSED = frozenset({"rope.freqs"})  # in Meta's Llama 2 files; computed from rope_theta instead
MAX_LISTED = 8


def load_checkpoint(path: str | Path, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Weights by Meta name, memory-mapped, in the dtype of the file.

    The file holds a dict of tensors, or one under the key ``model``. Raises HarnessError that lists
    every missing, unexpected and misshapen tensor. Nothing in the file is executed.
    """
    tensors = _read(Path(path))
    weights = {name: value for name, value in tensors.items() if name not in UNUSED}
    if "output.weight" not in weights and "tok_embeddings.weight" in weights:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    problems = _problems(weights, config.weight_shapes)
    if problems:
        shown = "; ".join(problems[:MAX_LISTED])
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise HarnessError(f"{path} does not fit its params: {shown}{more}")
    return weights


def is_tied(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the output layer is the embedding table itself."""
    return weights["output.weight"] is weights["tok_embeddings.weight"]


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise HarnessError(f"cannot read {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file raises anything, from IndexError to struct.error
        # torch's own message runs over many lines and advises weights_only=False: not passed on
        raise HarnessError(
            f"{path} is not a checkpoint that loads without executing code "
            f"({type(error).__name__}); save a dict of tensors with torch.save"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict):
        raise HarnessError(f"{path} must hold a dict of tensors, not {type(content).__name__}")
    return content


def _problems(weights: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [f"{name} is missing" for name in shapes if name not in weights]
    extra = [f"{name!r} is not expected" for name in weights if name not in shapes]
    wrong = []
    for name, shape in shapes.items():
        if (value := weights.get(name)) is None:
            continue
        if not isinstance(value, torch.Tensor) or value.dtype not in FLOAT_DTYPES:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            wrong.append(f"{name} is {kind}, not a floating-point tensor")
        elif tuple(value.shape) != shape:
            wrong.append(f"{name} has shape {list(value.shape)}, not {list(shape)}")
    return missing + extra + wrong
