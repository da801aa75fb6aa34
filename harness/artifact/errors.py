"""What is said of an artefact that cannot be read."""

from harness.errors import HarnessError


class ArtifactError(HarnessError):
    """An artefact is truncated, damaged or contradicts itself; says where and what to do."""
