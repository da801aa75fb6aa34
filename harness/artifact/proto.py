"""The protobuf classes of a Core ML model, without importing coremltools.

coremltools carries generated classes in `coremltools/proto`. Importing them the ordinary way
imports all of coremltools (9 s); a package of our own that has the same folder as its path gives
the same classes in 40 ms.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from harness.artifact.errors import ArtifactError
from harness.errors import NotInstalledError

_PACKAGE = "harness.artifact._coremltools_proto"
_LARGEST_SPEC = 1 << 30  # bytes; protobuf itself ends at 2 GB


def _module(name: str) -> Any:
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or spec.origin is None:
            raise NotInstalledError("coremltools is not installed: pip install 'coremltools==9.0'")
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(Path(spec.origin).parent / "proto")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")


def new_model() -> Any:
    """Return an empty `Model` message."""
    return _module("Model_pb2").Model()


def parse_model(data: memoryview, what: str) -> Any:
    """Parse a `model.mlmodel` (message `Model`); raises ArtifactError, naming `what`."""
    if len(data) > _LARGEST_SPEC:
        raise ArtifactError(f"{what}: model.mlmodel has {len(data)} bytes; 1 GB is the limit")
    model = new_model()
    try:
        model.ParseFromString(bytes(data))
    except DecodeError:
        raise ArtifactError(
            f"{what}: model.mlmodel is not a Core ML model; it is truncated or damaged"
        ) from None
    if model.WhichOneof("Type") != "mlProgram":
        kind = model.WhichOneof("Type") or "nothing"
        raise ArtifactError(f"{what}: model.mlmodel holds {kind}; only an ML Program can be read")
    return model
