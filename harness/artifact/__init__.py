"""Bytes to facts: .pte, flattened package, .mlpackage, metadata.json, weight blobs. No torch.

Everything is read lazily from memory maps, and nothing that is found in an artifact - a length, an
offset, a name, a path - is trusted.
"""

from harness.artifact.artifact import Artifact, open_artifact
from harness.artifact.delegate import Bundle, Delegate
from harness.artifact.errors import ArtifactError
from harness.artifact.metadata import MethodMetadata, ModelMetadata, parse_metadata
from harness.artifact.package import Package

__all__ = [
    "Artifact",
    "ArtifactError",
    "Bundle",
    "Delegate",
    "MethodMetadata",
    "ModelMetadata",
    "Package",
    "open_artifact",
    "parse_metadata",
]
