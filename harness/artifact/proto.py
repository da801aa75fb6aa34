"""The protobuf messages of a Core ML model, without importing coremltools.

coremltools carries the generated classes in `coremltools/proto`. The ordinary import of them
imports all of coremltools, which takes 9 s; a package of our own with the same folder as its path
gives the same classes in 40 ms. coremltools has no types for them; ours are in
`stubs/coremltools/proto`, for mypy only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from harness.artifact.errors import ArtifactError
from harness.artifact.limits import MAX_SPEC_BYTES
from harness.errors import NotInstalledError

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

_PACKAGE = "harness.artifact._coremltools_proto"


def proto_module(name: str) -> ModuleType:
    """Return a module of `coremltools.proto`; raise NotInstalledError without coremltools."""
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or spec.origin is None:
            raise NotInstalledError("coremltools is not installed: pip install 'coremltools==9.0'")
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(Path(spec.origin).parent / "proto")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")


def new_model() -> Model:
    """Return an empty `Model` message."""
    model: Model = proto_module("Model_pb2").Model()
    return model


def parse_model(data: memoryview, what: str) -> Model:
    """Return the `Model` message of a `model.mlmodel`; raise ArtifactError, naming `what`."""
    if len(data) > MAX_SPEC_BYTES:
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
