"""Tables of a flatbuffer, read by slot number and bounded by the buffer they lie in.

The offsets in a file are not trusted: `flatbuffers` does the arithmetic, and every failure of it,
every vector longer than the buffer and every index outside a vector ends in ArtifactError. So does
a buffer whose vectors hold more than it has bytes: tables that refer to one another over and over
would make a small file fill the memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table as FlatTable

from harness.errors import ArtifactError

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
_SMALLEST_TABLE = 4  # bytes: an offset to the table of its fields
_FAILURES = (struct.error, IndexError, ValueError, TypeError, OverflowError)


def damaged(what: str) -> ArtifactError:
    """Return the error for a table that does not make sense."""
    return ArtifactError(
        f"the program's tables are damaged ({what}): the file is truncated or is not a .pte; "
        "export or copy it again"
    )


class _Budget:
    """How many bytes of vectors and tables may still be read from one buffer."""

    def __init__(self, buffer: memoryview) -> None:
        self._left = 2 * len(buffer)  # no byte needs to be read twice; strings may be shared

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise damaged("more items than the file has bytes")


class Table:
    """One flatbuffer table; slots are numbered from 0 in the order of the schema's fields."""

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

    def _field(self, slot: int) -> int:
        """Return the absolute position of a field, 0 when the table does not hold it."""
        try:
            offset: int = self._table.Offset(4 + 2 * slot)
        except _FAILURES:
            raise damaged(f"field {slot}") from None
        return offset + self._table.Pos if offset else 0

    def scalar(self, slot: int, kind: str, default: Any = 0) -> Any:
        """Return a number or a bool, `default` when absent; `kind` as in numpy ("uint32")."""
        position = self._field(slot)
        if not position:
            return default
        try:
            return self._table.Get(_SCALARS[kind], position)
        except _FAILURES:
            raise damaged(f"field {slot}") from None

    def child(self, slot: int) -> Table | None:
        """Return the table (or union member) that a field points at, None when absent."""
        position = self._field(slot)
        return self._at(position) if position else None

    def text(self, slot: int, default: str = "") -> str:
        """Return a string, `default` when absent."""
        data = self.vector(slot, 1)
        if data is None:
            return default
        try:
            return bytes(data).decode()
        except UnicodeDecodeError:
            raise damaged(f"field {slot} is no UTF-8 text") from None

    def vector(self, slot: int, item_size: int) -> memoryview | None:
        """Return the bytes of a vector of scalars, None when absent."""
        position = self._field(slot)
        if not position:
            return None
        start = self._indirect(position)
        try:
            length = self._table.Get(number_types.UOffsetTFlags, start)
        except _FAILURES:
            raise damaged(f"field {slot}") from None
        end = start + 4 + length * item_size
        if end > len(self._table.Bytes):
            raise damaged(f"field {slot} claims {length} items")
        self._budget.spend(length * item_size)
        content: memoryview = self._table.Bytes[start + 4 : end]
        return content

    def numbers(self, slot: int, dtype: str) -> tuple[int, ...]:
        """Return a vector of numbers (little-endian `dtype`, as numpy names it)."""
        item = np.dtype(dtype).newbyteorder("<")
        data = self.vector(slot, item.itemsize)
        return () if data is None else tuple(np.frombuffer(data, item).tolist())

    def children(self, slot: int) -> Iterator[Table]:
        """Yield the tables of a vector of tables."""
        data = self.vector(slot, 4)
        if data is None:
            return
        start = self._indirect(self._field(slot)) + 4
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
