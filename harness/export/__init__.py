"""From a checkpoint to an artifact.

:mod:`harness.export.options` says what can be asked for. Two exporters take the same options:
:mod:`harness.export.executorch` runs ExecuTorch's own, which writes a .pte;
:mod:`harness.export.coreml` is ours, and writes a folder of packages. Neither imports torch before
it exports.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

Progress = Callable[[str], None]  # called with the name of each stage as it begins
EXPORTERS = ("executorch", "coreml")


def exporter(name: str) -> Any:
    """The module of an exporter, with `export(checkpoint, params, options, output, progress)`."""
    return importlib.import_module(f"harness.export.{name}")
