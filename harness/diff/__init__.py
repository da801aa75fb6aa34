"""What changed between two artifacts: program, operations, weights, metadata, size. No torch."""

from harness.diff.artifacts import diff_artifacts
from harness.diff.difference import Difference

__all__ = ["Difference", "diff_artifacts"]
