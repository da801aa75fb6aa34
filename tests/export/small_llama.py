"""A Llama that is small enough to export in a second or two, and its export by our exporter."""

import json
from pathlib import Path

import torch

from harness.export.coreml import export
from harness.export.options import ExportOptions
from harness.fixtures.random_model import random_weights
from harness.models.config import parse_params
from harness.subject import Subject

PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "hidden_dim": 96,
    "vocab_size": 160,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
OPTIONS = {"input_len": 4, "max_context_len": 24, "target_split_size": None}


def write_model(folder: Path, tied: bool = False, **changes: object) -> tuple[Path, Path]:
    """Write checkpoint.pth and params.json, with some of `PARAMS` changed; return their paths."""
    params = PARAMS | changes
    weights = random_weights(parse_params(params), 7)
    if tied:
        del weights["output.weight"]
    torch.save(weights, folder / "checkpoint.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder / "checkpoint.pth", folder / "params.json"


def export_small(folder, output, **options):
    """Export the model in `folder`."""
    chosen = ExportOptions(**OPTIONS | options)
    return export(folder / "checkpoint.pth", folder / "params.json", chosen, output)


def subject(folder, path, **options):
    """Return the subject of the export at `path`, made of the model in `folder`."""
    chosen = ExportOptions(**OPTIONS | options)
    return Subject(path, folder / "checkpoint.pth", folder / "params.json", chosen)


def content(folder):
    """Return every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
