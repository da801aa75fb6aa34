"""The types that coremltools lacks: those of its protobuf messages; everything else is `Any`."""

from typing import Any

def __getattr__(name: str) -> Any: ...
