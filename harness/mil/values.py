"""Reads constants from the program's text or its weight file, as tensors.

Source: coremltools' `MIL.proto`. FLOAT16 and small integers are stored as bytes; integers of fewer
than 8 bits are packed, beginning with the lowest bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.artifact.package import Package
from harness.errors import ArtifactError
from harness.mil.types import ListType, TensorType, tensor_type, value_type

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2


_LISTS = {
    "BOOL": "bools",
    "STRING": "strings",
    "FLOAT32": "floats",
    "FLOAT64": "doubles",
    "INT32": "ints",
    "INT64": "longInts",
    "UINT64": "longInts",
    "INT16": "ints",
    "UINT16": "ints",
}
"""The field that holds immediate values of a dtype; all other dtypes are stored as bytes."""


@dataclass(frozen=True)
class Constant:
    """A constant: its type, its stored numpy array, and the file name and offset of its weight.

    `weight` is None for a constant in the program's text. `stored` holds the packed bytes, a 1-D
    uint8 array, for integers of fewer than 8 bits, and the array itself for all other dtypes.
    """

    type: TensorType
    stored: np.ndarray
    weight: tuple[str, int] | None = None

    @property
    def array(self) -> np.ndarray:
        """The array, 0-D for a scalar or a STRING; each access unpacks integers of a few bits."""
        if 0 < self.type.dtype.bits < 8:
            return _unpacked(self.stored, self.type)
        return self.stored

    @property
    def python(self) -> Any:
        """The value as a Python scalar, or a (nested) list."""
        return self.array.tolist()

    def tensor(self) -> torch.Tensor:
        """Return a copy as a tensor of the same dtype; uint16 to uint64 become int64."""
        array = self.array
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        return torch.from_numpy(array.copy())


def read_constant(value: MIL_pb2.Value, package: Package, where: str) -> Constant:
    """Decode a `Value`; raise ArtifactError that names `where` when it contradicts itself.

    A list of scalars, such as the labels of a classifier, becomes an array with one axis.
    """
    declared = value_type(value.type, where)
    if isinstance(declared, ListType):
        return _list(value.immediateValue.list.values, declared.element, package, where)
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


def _list(
    values: Iterable[MIL_pb2.Value], element: TensorType, package: Package, where: str
) -> Constant:
    items = [read_constant(value, package, where) for value in values]
    if any(item.type != element or element.shape != () for item in items):
        raise ArtifactError(f"{where}: a constant list must hold scalars of {element.dtype.name}")
    dtype = object if element.dtype.name == "STRING" else np.dtype(element.dtype.numpy)
    array = np.array([item.array[()] for item in items], dtype)
    return Constant(TensorType(element.dtype, (len(items),)), array)


def _immediate(tensor: MIL_pb2.TensorValue, declared: TensorType, where: str) -> np.ndarray:
    field = _LISTS.get(declared.dtype.name, "bytes")
    if field == "ints" and tensor.WhichOneof("value") == "bytes" and declared.dtype.bits == 16:
        field = "bytes"  # coremltools' proto announces this future field
    if tensor.WhichOneof("value") not in (field, None):
        raise ArtifactError(
            f"{where}: declared {declared.dtype.name}, but its value is in "
            f"'{tensor.WhichOneof('value')}' instead of '{field}'"
        )
    if field == "bytes":
        return _from_bytes(memoryview(tensor.bytes.values), declared, where)
    items = list(getattr(tensor, field).values)
    _check_count(len(items), declared, where)
    dtype = object if declared.dtype.name == "STRING" else np.dtype(declared.dtype.numpy)
    try:
        return np.array(items, dtype).reshape(_fixed_shape(declared, where))
    except OverflowError:
        raise ArtifactError(f"{where}: a value does not fit {declared.dtype.name}") from None


def _from_bytes(data: memoryview, declared: TensorType, where: str) -> np.ndarray:
    shape, bits = _fixed_shape(declared, where), declared.dtype.bits
    needed = (declared.count * bits + 7) // 8
    if len(data) != needed or bits == 0:
        raise ArtifactError(
            f"{where}: {declared.dtype.name}{list(shape)} needs {needed} bytes, has {len(data)}"
        )
    if bits >= 8:
        return np.frombuffer(data, declared.dtype.numpy).reshape(shape)
    return np.frombuffer(data, np.uint8)


def _unpacked(raw: np.ndarray, declared: TensorType) -> np.ndarray:
    """Unpack integers of fewer than 8 bits from bytes; each becomes an int8 or a uint8."""
    bits = declared.dtype.bits
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        numbers = (raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    else:
        stream = np.unpackbits(raw, bitorder="little")
        groups = stream[: stream.size // bits * bits].reshape(-1, bits)
        numbers = np.packbits(groups, axis=1, bitorder="little")
    shape = [size or 0 for size in declared.shape]
    numbers = numbers.reshape(-1)[: declared.count].reshape(shape)
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
