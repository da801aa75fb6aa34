"""The protobuf messages of a Core ML model, without importing coremltools.

The generated classes are in `coremltools/proto`. To import them from there imports all of
coremltools, which takes 9 s. A package of our own whose path is the same folder gives the same
classes in 40 ms. coremltools has no types for them; ours, for mypy only, are in
`stubs/coremltools/proto`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from harness.artifact.files import MAX_SPEC_BYTES
from harness.errors import ArtifactError, NotInstalledError

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import TensorType
    from coremltools.proto.Model_pb2 import Model

_PACKAGE = "harness.artifact._coremltools_proto"


@dataclass(frozen=True)
class MilType:
    """A MIL dtype: its name, the numpy dtype that holds its values, and its size in bits."""

    name: str
    numpy: str
    bits: int


_MIL_TYPES = (
    MilType("BOOL", "bool", 8),
    MilType("STRING", "str", 0),
    MilType("FLOAT16", "float16", 16),
    MilType("FLOAT32", "float32", 32),
    MilType("FLOAT64", "float64", 64),
    MilType("INT8", "int8", 8),
    MilType("INT16", "int16", 16),
    MilType("INT32", "int32", 32),
    MilType("INT64", "int64", 64),
    MilType("INT4", "int8", 4),
    MilType("UINT8", "uint8", 8),
    MilType("UINT16", "uint16", 16),
    MilType("UINT32", "uint32", 32),
    MilType("UINT64", "uint64", 64),
    MilType("UINT4", "uint8", 4),
    MilType("UINT2", "uint8", 2),
    MilType("UINT1", "uint8", 1),
    MilType("UINT6", "uint8", 6),
    MilType("UINT3", "uint8", 3),
)
_FEATURE_TYPES = {
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "DOUBLE": "float64",
    "INT8": "int8",
    "INT32": "int32",
}


def proto_module(name: str) -> ModuleType:
    """Return a module of `coremltools.proto`; raises NotInstalledError without coremltools."""
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or spec.origin is None:
            raise NotInstalledError("coremltools is not installed: pip install 'coremltools==9.0'")
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(Path(spec.origin).parent / "proto")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")


@functools.cache
def mil_types() -> dict[int, MilType]:
    """Return the dtypes of ML Programs by number (`DataType` in `MIL.proto`)."""
    number = proto_module("MIL_pb2").DataType.Value
    return {number(dtype.name): dtype for dtype in _MIL_TYPES}


@functools.cache
def feature_types() -> dict[int, str]:
    """Return the dtypes of arrays in a model's description, in numpy's names.

    Keys are the numbers of `ArrayDataType` in `FeatureTypes.proto`.
    """
    number = proto_module("FeatureTypes_pb2").ArrayFeatureType.ArrayDataType.Value
    return {number(name): dtype for name, dtype in _FEATURE_TYPES.items()}


def declared_shape(tensor: TensorType) -> tuple[int | None, ...]:
    """Return the shape of a `TensorType` message; None is a flexible dimension."""
    return tuple(
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else None
        for dimension in tensor.dimensions
    )


def new_model() -> Model:
    """Return an empty `Model` message."""
    model: Model = proto_module("Model_pb2").Model()
    return model


def parse_specification(data: memoryview, what: str) -> Model:
    """Return the `Model` message of a `model.mlmodel`, of whatever kind the model is.

    Raises ArtifactError, naming `what`, when it cannot be parsed.
    """
    if len(data) > MAX_SPEC_BYTES:
        raise ArtifactError(f"{what}: model.mlmodel has {len(data)} bytes; 1 GB is the limit")
    model = new_model()
    try:
        model.ParseFromString(bytes(data))
    except DecodeError:
        raise ArtifactError(
            f"{what}: model.mlmodel is not a Core ML model; it is truncated or damaged"
        ) from None
    return model


def checked_program(model: Model, what: str) -> Model:
    """Return a model that is an ML Program; raises ArtifactError for one of another kind."""
    kind = model.WhichOneof("Type") or "nothing"
    if kind == "mlProgram":
        return model
    advice = {"neuralNetwork": ': convert the model with convert_to="mlprogram"'} | {
        "pipeline": ": read the models of which the pipeline was made"
    }
    remedy = next((text for start, text in advice.items() if kind.startswith(start)), "")
    raise ArtifactError(
        f"{what}: model.mlmodel holds {kind}; only an ML Program can be read{remedy}"
    )
