"""From a checkpoint to an artifact.

:mod:`harness.export.exporters` finds an exporter by its name, :mod:`harness.export.options` says
what it can be asked for. Two kinds of exporter take the same options:
:mod:`harness.export.executorch` runs that of any ExecuTorch
(:mod:`harness.export.environments` finds or makes it), which writes a .pte;
:mod:`harness.export.coreml` is ours, and writes a folder of packages. Neither imports torch before
it exports.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]  # called with the name of each stage as it begins
EXPORTERS = ("executorch", "coreml")
