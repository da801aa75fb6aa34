"""Converts a checkpoint and its params to Meta's files, which ExecuTorch's exporter reads.

The exporter takes only a `.pth` with Meta's names and a `params.json` with Meta's keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.files import writing
from harness.models import ModelConfig, RopeScaling
from harness.models.checkpoint import is_tied, is_torch_file, load_checkpoint, read_tensors
from harness.models.config import load_params

_COPIED = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size")


def meta_files(checkpoint: Path, params: Path, folder: Path) -> tuple[Path, Path]:
    """Return the paths of a checkpoint and params that the exporter reads.

    They are written into `folder`; a checkpoint of Meta's is used where it lies.

    Raises HarnessError for weights that do not fit, and for a RoPE scaling that Meta's params
    cannot express.
    """
    config = load_params(params)
    written = folder / "params.json"
    written.write_text(json.dumps(meta_params(config, str(params))), encoding="utf-8")
    weights = load_checkpoint(checkpoint, config)
    if is_tied(weights):
        del weights["output.weight"]
    # the exporter's static attention has another name for what ExecuTorch's models call q_norm_fn
    renamed = {name.replace("_norm_fn.", "_norm."): weight for name, weight in weights.items()}
    as_it_is = is_torch_file(checkpoint) and renamed.keys() == weights.keys()
    if as_it_is and "tok_embeddings.weight" in read_tensors(checkpoint):
        return checkpoint, written
    path = folder / "checkpoint.pth"
    with writing(path), path.open("wb") as file:
        torch.save(renamed, file)
    return path, written


def meta_params(config: ModelConfig, where: str) -> dict[str, Any]:
    """Return the content of Meta's params.json; `where` names the config's source in errors."""
    params: dict[str, Any] = {name: getattr(config, name) for name in _COPIED}
    params |= {"norm_eps": config.norm_eps, "rope_theta": config.rope_theta}
    params |= {key: values[0] for key, values in config.architecture.params.items()}
    scaling = config.rope_scaling
    if scaling is None:
        return params
    given = (scaling.low_freq_factor, scaling.original_context_len)
    fixed = (RopeScaling.low_freq_factor, RopeScaling.original_context_len)
    if given != fixed:
        raise HarnessError(
            f"{where}: the exporter of ExecuTorch only knows RoPE scaling with a low factor of "
            f"{fixed[0]:g} and an original context of {fixed[1]}, not {given[0]:g} and {given[1]}"
        )
    return params | {
        "use_scaled_rope": True,
        "rope_scale_factor": scaling.factor,
        "high_freq_factor": scaling.high_freq_factor,
    }
