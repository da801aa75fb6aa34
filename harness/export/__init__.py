"""Exports a checkpoint to an artifact.

:mod:`harness.export.options` defines the options. Two exporters take the same ones:
:mod:`harness.export.executorch` runs ExecuTorch's exporter, which writes a .pte;
:mod:`harness.export.coreml` is our own and writes a folder of packages. Neither imports torch
before it exports.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

Progress = Callable[[str], None]  # called with the name of each stage as it begins
EXPORTERS = ("executorch", "coreml")


def exporter(name: str) -> Any:
    """Return an exporter's module: `export(checkpoint, params, options, output, progress)`."""
    return importlib.import_module(f"harness.export.{name}")
