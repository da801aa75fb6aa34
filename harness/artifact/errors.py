"""What is said of an artifact that cannot be read."""

from harness.errors import HarnessError


class ArtifactError(HarnessError):
    """An artifact is truncated, damaged or contradicts itself; says where and what to do."""
