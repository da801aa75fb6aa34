"""Conformance kit and benchmark for Core ML language models.

The names of `__all__` are the Python interface; `docs/python.md` shows them. Each is imported when
it is used first: `import harness` alone imports neither torch nor coremltools.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.artifact import Artifact, open_artifact
    from harness.artifact.facts import artifact_facts
    from harness.checks.subject import check
    from harness.diff import diff_artifacts
    from harness.divergence import bisect, measured_ranges
    from harness.errors import HarnessError
    from harness.export.exporters import get_exporter
    from harness.export.options import ExportOptions
    from harness.generate import generate_text
    from harness.generate.lookahead import Lookahead
    from harness.generate.session import Session
    from harness.generate.tokenizer import load_tokenizer
    from harness.measure import compare_runs
    from harness.measure.artifacts import compare_artifacts
    from harness.measure.comparison import bench
    from harness.packages import combine_packages
    from harness.packages.extract import extract_packages
    from harness.results import Case, read_run
    from harness.subject import Subject

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Case",
    "ExportOptions",
    "HarnessError",
    "Lookahead",
    "Session",
    "Subject",
    "artifact_facts",
    "bench",
    "bisect",
    "check",
    "combine_packages",
    "compare_artifacts",
    "compare_runs",
    "diff_artifacts",
    "extract_packages",
    "generate_text",
    "get_exporter",
    "load_tokenizer",
    "measured_ranges",
    "open_artifact",
    "read_run",
]

_MODULES = {
    "artifact": ("Artifact", "open_artifact"),
    "artifact.facts": ("artifact_facts",),
    "checks.subject": ("check",),
    "diff": ("diff_artifacts",),
    "divergence": ("bisect", "measured_ranges"),
    "errors": ("HarnessError",),
    "export.exporters": ("get_exporter",),
    "export.options": ("ExportOptions",),
    "generate": ("generate_text",),
    "generate.lookahead": ("Lookahead",),
    "generate.session": ("Session",),
    "generate.tokenizer": ("load_tokenizer",),
    "measure": ("compare_runs",),
    "measure.artifacts": ("compare_artifacts",),
    "measure.comparison": ("bench",),
    "packages": ("combine_packages",),
    "packages.extract": ("extract_packages",),
    "results": ("Case", "read_run"),
    "subject": ("Subject",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # or a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Import a name of the interface, and keep it."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'harness' has no attribute '{name}'")
        value = getattr(importlib.import_module(f"harness.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
