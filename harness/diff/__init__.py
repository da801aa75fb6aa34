"""What changed between two artefacts: program, operations, weights, metadata, size. No torch."""

from harness.diff.artefacts import diff_artifacts
from harness.diff.difference import Difference

__all__ = ["Difference", "diff_artifacts"]
