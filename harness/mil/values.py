"""MIL values: types, and constants from the program's text or its weight file, as tensors.

Source: coremltools' `MIL.proto`. FLOAT16 and the small integers stand as bytes, sub-byte integers
packed from the lowest bit up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.artifact.dtypes import MIL_TYPES, MilType
from harness.artifact.errors import ArtifactError
from harness.artifact.package import Package

Shape = tuple[int | None, ...]
_LISTS = {
    "BOOL": "bools",
    "STRING": "strings",
    "FLOAT32": "floats",
    "FLOAT64": "doubles",
    "INT32": "ints",
    "INT64": "longInts",
    "UINT64": "longInts",
}
"""The dtypes whose immediate values stand in a list of their own; all others stand as bytes."""


@dataclass(frozen=True)
class TensorType:
    """A declared tensor: its dtype and its shape, None where a dimension is flexible."""

    dtype: MilType
    shape: Shape

    @property
    def count(self) -> int:
        """The number of elements; flexible dimensions count as one."""
        return math.prod(size or 0 if size is not None else 1 for size in self.shape)


def tensor_type(value_type: Any, where: str) -> TensorType:
    """Return the tensor type of a `ValueType`; raises ArtifactError for any other type."""
    if value_type.WhichOneof("type") != "tensorType":
        kind = value_type.WhichOneof("type") or "nothing"
        raise ArtifactError(f"{where}: a value of kind {kind}; only tensors can be executed")
    declared = value_type.tensorType
    if declared.dataType not in MIL_TYPES:
        raise ArtifactError(f"{where}: unknown MIL dtype {declared.dataType}")
    shape = tuple(
        d.constant.size if d.WhichOneof("dimension") == "constant" else None
        for d in declared.dimensions
    )
    return TensorType(MIL_TYPES[declared.dataType], shape)


@dataclass(frozen=True)
class Constant:
    """A constant: its type, a numpy array (0-d for a scalar or a STRING), and the file name and
    offset of the weight that it is, None when it stands in the program's text."""

    type: TensorType
    array: np.ndarray
    weight: tuple[str, int] | None = None

    @property
    def python(self) -> Any:
        """The value as Python's own: a scalar, or a (nested) list."""
        return self.array.tolist()

    def tensor(self) -> torch.Tensor:
        """Return a tensor of the array's dtype, a copy; unsigned 16 to 64 bits come as int64."""
        array = self.array
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        return torch.from_numpy(array.copy())


def read_constant(value: Any, package: Package, where: str) -> Constant:
    """Decode a `Value`; raises ArtifactError, naming ``where``, when it contradicts itself."""
    declared = tensor_type(value.type, where)
    if value.WhichOneof("value") == "blobFileValue":
        reference = value.blobFileValue
        blob = package.blob(reference.fileName, reference.offset)
        if blob.dtype != declared.dtype.name:
            raise ArtifactError(
                f"{where}: declared {declared.dtype.name}, but its weight is {blob.dtype}"
            )
        array = _from_bytes(blob.data, declared, where)
        return Constant(declared, array, (reference.fileName, reference.offset))
    return Constant(declared, _immediate(value.immediateValue.tensor, declared, where))


def _immediate(tensor: Any, declared: TensorType, where: str) -> np.ndarray:
    field = _LISTS.get(declared.dtype.name, "bytes")
    if tensor.WhichOneof("value") not in (field, None):
        raise ArtifactError(
            f"{where}: declared {declared.dtype.name}, but its value stands under "
            f"'{tensor.WhichOneof('value')}' instead of '{field}'"
        )
    if field == "bytes":
        return _from_bytes(memoryview(tensor.bytes.values), declared, where)
    items = list(getattr(tensor, field).values)
    _check_count(len(items), declared, where)
    dtype = object if declared.dtype.name == "STRING" else np.dtype(declared.dtype.numpy)
    return np.array(items, dtype).reshape(_fixed_shape(declared, where))


def _from_bytes(data: memoryview, declared: TensorType, where: str) -> np.ndarray:
    shape, bits = _fixed_shape(declared, where), declared.dtype.bits
    needed = (declared.count * bits + 7) // 8
    if len(data) < needed or bits == 0:
        raise ArtifactError(
            f"{where}: {declared.dtype.name}{list(shape)} needs {needed} bytes, has {len(data)}"
        )
    if bits >= 8:
        return np.frombuffer(data[:needed], declared.dtype.numpy).reshape(shape)
    return _unpacked(data[:needed], declared).reshape(shape)


def _unpacked(data: memoryview, declared: TensorType) -> np.ndarray:
    """Unpack integers of fewer than 8 bits to one int8 or uint8 each."""
    bits, raw = declared.dtype.bits, np.frombuffer(data, np.uint8)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        numbers = (raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    else:
        stream = np.unpackbits(raw, bitorder="little")
        places = stream[: stream.size // bits * bits].reshape(-1, bits)
        numbers = np.packbits(places, axis=1, bitorder="little")
    numbers = numbers.reshape(-1)[: declared.count]
    if declared.dtype.name == "INT4":
        return (numbers.astype(np.int8) ^ np.int8(8)) - np.int8(8)
    return numbers


def _fixed_shape(declared: TensorType, where: str) -> tuple[int, ...]:
    if None in declared.shape:
        raise ArtifactError(f"{where}: a constant with a flexible shape")
    return tuple(size for size in declared.shape if size is not None)


def _check_count(count: int, declared: TensorType, where: str) -> None:
    if count != declared.count:
        raise ArtifactError(
            f"{where}: declared {declared.count} values of {declared.dtype.name}, holds {count}"
        )
