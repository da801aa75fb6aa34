"""What the pages take from docs/start.md, each written into a folder under its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file, save_file

from harness.fixtures.cache import exported, fixture
from harness.fixtures.tiny import STORED


def an_export(path: Path) -> None:
    """Write the multifunction export of `tiny`."""
    multifunction = replace(fixture("tiny").options, mode="multifunction")
    shutil.copyfile(exported("tiny", multifunction), path)


def a_changed_checkpoint(path: Path) -> None:
    """Write the checkpoint of `tiny` with one weight of a norm 1 % too large, as start.md does."""
    weights = load_file(STORED / "checkpoint.safetensors")
    weights["layers.0.attention_norm.weight"][5] *= 1.01
    save_file(weights, path)


GIVEN: dict[str, Callable[[Path], None]] = {
    "model.pte": an_export,
    "changed.safetensors": a_changed_checkpoint,
}
