"""Reads the tables of an ExecuTorch program, a flatbuffer, without trust in its offsets.

A flatbuffer numbers a table's fields in the order of the schema; a union takes two numbers, that of
its kind first. The enumerations below name the fields in ExecuTorch's `schema/program.fbs`.

`flatbuffers` does the arithmetic. Each failure of it, each vector that is longer than the buffer
and each index outside a vector raises ArtifactError. So do vectors that together hold more bytes
than the buffer: tables that refer to one another many times could let a small file fill the memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table as FlatTable

from harness.artifact.files import cut
from harness.errors import ArtifactError

ONLY_FIELD = 0
"""The field of a table with a single one: a number, a text, a list's items, a buffer's data."""


class ProgramField(IntEnum):
    """The fields of `Program`, the root."""

    VERSION, EXECUTION_PLAN, CONSTANT_BUFFER, BACKEND_DELEGATE_DATA = range(4)
    SEGMENTS, CONSTANT_SEGMENT, MUTABLE_DATA_SEGMENTS, NAMED_DATA = range(4, 8)


class NamedDataField(IntEnum):
    """The fields of `NamedData`."""

    KEY, SEGMENT_INDEX = range(2)


class DataSegmentField(IntEnum):
    """The fields of `DataSegment`."""

    OFFSET, SIZE = range(2)


class SubsegmentOffsetsField(IntEnum):
    """The fields of `SubsegmentOffsets`."""

    SEGMENT_INDEX, OFFSETS = range(2)


class ExecutionPlanField(IntEnum):
    """The fields of `ExecutionPlan`, a method."""

    NAME, CONTAINER_META_TYPE, VALUES, INPUTS, OUTPUTS, CHAINS, OPERATORS, DELEGATES = range(8)
    NON_CONST_BUFFER_SIZES = 8


class OperatorField(IntEnum):
    """The fields of `Operator`."""

    NAME, OVERLOAD = range(2)


class BackendDelegateField(IntEnum):
    """The fields of `BackendDelegate`."""

    ID, PROCESSED, COMPILE_SPECS = range(3)


class BackendDelegateDataReferenceField(IntEnum):
    """The fields of `BackendDelegateDataReference`."""

    LOCATION, INDEX = range(2)


class CompileSpecField(IntEnum):
    """The fields of `CompileSpec`."""

    KEY, VALUE = range(2)


class ChainField(IntEnum):
    """The fields of `Chain`."""

    INPUTS, OUTPUTS, INSTRUCTIONS, STACKTRACE = range(4)


class InstructionField(IntEnum):
    """The fields of `Instruction`: the kind of its arguments, and the arguments."""

    INSTR_ARGS_TYPE, INSTR_ARGS = range(2)


class InstructionArguments(IntEnum):
    """The kinds of instruction."""

    NONE, KERNEL_CALL, DELEGATE_CALL, MOVE_CALL, JUMP_FALSE_CALL, FREE_CALL = range(6)


class KernelCallField(IntEnum):
    """The fields of `KernelCall`."""

    OP_INDEX, ARGS = range(2)


class DelegateCallField(IntEnum):
    """The fields of `DelegateCall`."""

    DELEGATE_INDEX, ARGS = range(2)


class MoveCallField(IntEnum):
    """The fields of `MoveCall`."""

    MOVE_FROM, MOVE_TO = range(2)


class JumpFalseCallField(IntEnum):
    """The fields of `JumpFalseCall`."""

    COND_VALUE_INDEX, DESTINATION_INSTRUCTION = range(2)


class EValueField(IntEnum):
    """The fields of `EValue`: the kind of the value, and the value."""

    VAL_TYPE, VAL = range(2)


class KernelTypes(IntEnum):
    """The kinds of value."""

    NONE, NULL, INT, BOOL, DOUBLE, TENSOR, STRING = range(7)
    INT_LIST, DOUBLE_LIST, BOOL_LIST, TENSOR_LIST, OPTIONAL_TENSOR_LIST = range(7, 12)


class TensorField(IntEnum):
    """The fields of `Tensor`."""

    SCALAR_TYPE, STORAGE_OFFSET, SIZES, DIM_ORDER, REQUIRES_GRAD = range(5)
    DATA_BUFFER_IDX, ALLOCATION_INFO, LAYOUT, SHAPE_DYNAMISM, EXTRA_TENSOR_INFO = range(5, 10)


class AllocationDetailsField(IntEnum):
    """The fields of `AllocationDetails`."""

    MEMORY_ID, MEMORY_OFFSET_LOW, MEMORY_OFFSET_HIGH = range(3)


class ExtraTensorInfoField(IntEnum):
    """The fields of `ExtraTensorInfo`."""

    MUTABLE_DATA_SEGMENTS_IDX, FULLY_QUALIFIED_NAME, LOCATION = range(3)


_SCALARS = {
    "bool": number_types.BoolFlags,
    "int8": number_types.Int8Flags,
    "uint8": number_types.Uint8Flags,
    "int32": number_types.Int32Flags,
    "uint32": number_types.Uint32Flags,
    "int64": number_types.Int64Flags,
    "uint64": number_types.Uint64Flags,
    "float64": number_types.Float64Flags,
}
_EXTENDED_HEADER = struct.Struct("<4sIQQ")  # magic, length, program size, segment base offset
_SMALLEST_TABLE = 4  # bytes: an offset to the table of its fields
_FAILURES = (struct.error, IndexError, ValueError, TypeError, OverflowError)


def damaged(what: str) -> ArtifactError:
    """Return the error for a table whose content is not valid."""
    return ArtifactError(
        f"the program's tables are damaged ({what}): the file is truncated or is not a .pte; "
        "export or copy it again"
    )


def extents(file: memoryview) -> tuple[memoryview, int]:
    """Return the bytes that hold a program's tables, and the offset of its segments or 0."""
    if len(file) < 8 + _EXTENDED_HEADER.size:
        raise damaged("shorter than its header")
    magic, _, size, base = _EXTENDED_HEADER.unpack_from(file, 8)
    if magic != b"eh00":
        return file, 0
    return cut(file, 0, size, "the program"), base


class _Budget:
    """Counts the bytes of vectors and tables that may still be read from one buffer."""

    def __init__(self, buffer: memoryview) -> None:
        self._left = 2 * len(buffer)  # no byte needs to be read twice; strings may be shared

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise damaged("more items than the file has bytes")


class Table:
    """A table of a flatbuffer; its methods take the number of a field."""

    def __init__(self, buffer: memoryview, position: int, budget: _Budget) -> None:
        if not 0 <= position <= len(buffer) - 4:
            raise damaged(f"a table at byte {position} of {len(buffer)}")
        budget.spend(_SMALLEST_TABLE)
        self._table = FlatTable(buffer, position)
        self._budget = budget

    @classmethod
    def root(cls, buffer: memoryview) -> Table:
        """Return the root table of a buffer."""
        if len(buffer) < 8:
            raise damaged("no room for a root table")
        return cls(buffer, encode.Get(packer.uoffset, buffer, 0), _Budget(buffer))

    def _field(self, field: int) -> int:
        """Return the absolute position of a field, 0 when it is absent."""
        try:
            offset: int = self._table.Offset(4 + 2 * field)
        except _FAILURES:
            raise damaged(f"field {field}") from None
        return offset + self._table.Pos if offset else 0

    def scalar(self, field: int, kind: str, default: Any = 0) -> Any:
        """Return a number or a bool, `default` when absent; `kind` as in numpy ("uint32")."""
        position = self._field(field)
        if not position:
            return default
        try:
            return self._table.Get(_SCALARS[kind], position)
        except _FAILURES:
            raise damaged(f"field {field}") from None

    def child(self, field: int) -> Table | None:
        """Return the table (or union member) that a field points to, None when absent."""
        position = self._field(field)
        return self._at(position) if position else None

    def text(self, field: int, default: str = "") -> str:
        """Return a string, `default` when absent."""
        data = self.vector(field, 1)
        if data is None:
            return default
        try:
            return bytes(data).decode()
        except UnicodeDecodeError:
            raise damaged(f"field {field} is not UTF-8 text") from None

    def vector(self, field: int, item_size: int) -> memoryview | None:
        """Return the bytes of a vector of scalars, None when absent."""
        position = self._field(field)
        if not position:
            return None
        start = self._indirect(position)
        try:
            length = self._table.Get(number_types.UOffsetTFlags, start)
        except _FAILURES:
            raise damaged(f"field {field}") from None
        end = start + 4 + length * item_size
        if end > len(self._table.Bytes):
            raise damaged(f"field {field} claims {length} items")
        self._budget.spend(length * item_size)
        content: memoryview = self._table.Bytes[start + 4 : end]
        return content

    def numbers(self, field: int, dtype: str) -> tuple[int, ...]:
        """Return a vector of numbers (little-endian `dtype`, as numpy names it)."""
        item = np.dtype(dtype).newbyteorder("<")
        data = self.vector(field, item.itemsize)
        return () if data is None else tuple(np.frombuffer(data, item).tolist())

    def children(self, field: int) -> Iterator[Table]:
        """Yield the tables of a vector of tables."""
        data = self.vector(field, 4)
        if data is None:
            return
        start = self._indirect(self._field(field)) + 4
        for index in range(len(data) // 4):
            yield self._at(start + 4 * index)

    def _at(self, position: int) -> Table:
        return Table(self._table.Bytes, self._indirect(position), self._budget)

    def _indirect(self, position: int) -> int:
        try:
            target: int = self._table.Indirect(position)
        except _FAILURES:
            raise damaged(f"an offset at byte {position}") from None
        return target
