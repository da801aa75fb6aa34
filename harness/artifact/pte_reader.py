"""Reads an ExecuTorch program (.pte) from a memory map.

Source of the layout: ExecuTorch's `schema/program.fbs` (the slot numbers below are the positions
of the fields there) and `schema/extended_header.h`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from harness.artifact.flatbuffer import Table, damaged
from harness.artifact.limits import MAX_AXES
from harness.artifact.mapped import cut, map_file
from harness.artifact.pte import (
    DelegateCall,
    DelegateData,
    FreeCall,
    Instruction,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    Pte,
    PteMethod,
    TensorValue,
    Value,
)
from harness.errors import ArtifactError

FILE_IDENTIFIER = b"ET12"
_EXTENDED_HEADER = struct.Struct("<4sIQQ")  # magic, length, program size, segment base offset
_IN_SEGMENT = 1  # DataLocation.SEGMENT
_DYNAMISMS = range(3)  # TensorShapeDynamism
_STATIC = 0

SCALAR_TYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
    15: "bfloat16",
    27: "uint16",
    28: "uint32",
    29: "uint64",
}
"""The number of a .pte tensor's `scalar_type` -> its dtype."""


def read_pte(path: Path) -> Pte:
    """Read the tables of a .pte; raises ArtifactError when it is truncated or is not one."""
    return parse_pte(map_file(path), str(path))


def parse_pte(data: memoryview, what: str) -> Pte:
    """Read the tables of a program in memory; raises ArtifactError, naming `what`."""
    if bytes(data[4:8]) != FILE_IDENTIFIER:
        raise ArtifactError(
            f"{what}: not an ExecuTorch program (no '{FILE_IDENTIFIER.decode()}' at byte 4); "
            "give a .pte that ExecuTorch wrote, or an .mlpackage folder"
        )
    try:
        return ProgramTables(data).program()
    except ArtifactError as error:
        raise ArtifactError(f"{what}: {error}") from None


class ProgramTables:
    """Walks a program's tables once."""

    def __init__(self, data: memoryview) -> None:
        self._file = data
        tables, self._segment_base = self._extents()
        self._root = Table.root(tables)
        self._constants = [table.vector(0, 1) for table in self._root.children(2)]
        self._inline = [table.vector(0, 1) for table in self._root.children(3)]
        self._segments = list(self._root.children(4))
        self._constant_segment = self._root.child(5)
        self._mutable_segments = list(self._root.children(6))

    def program(self) -> Pte:
        """Read everything that is not payload."""
        named_data = {}
        for table in self._root.children(7):
            key = table.text(0)
            named_data[key] = self._segment(table.scalar(1, "uint32"), f"data '{key}'")
        methods: dict[str, PteMethod] = {}
        for table in self._root.children(1):
            method = self._method(table)
            if method.name in methods:
                raise damaged(f"two methods are named '{method.name}'")
            methods[method.name] = method
        return Pte(methods, named_data, len(self._file))

    def _extents(self) -> tuple[memoryview, int]:
        """Return the bytes that hold the tables, and where the segments start."""
        if len(self._file) < 8 + _EXTENDED_HEADER.size:
            raise damaged("shorter than its header")
        magic, _, size, base = _EXTENDED_HEADER.unpack_from(self._file, 8)
        if magic != b"eh00":
            return self._file, 0
        return cut(self._file, 0, size, "the program"), base

    def _segment(self, index: int, what: str) -> memoryview:
        if index >= len(self._segments):
            raise damaged(f"{what} lies in segment {index} of {len(self._segments)}")
        table = self._segments[index]
        offset, size = table.scalar(0, "uint64"), table.scalar(1, "uint64")
        return cut(self._file, self._segment_base + offset, size, what)

    def _method(self, table: Table) -> PteMethod:
        name = table.text(0)
        values = tuple(self._value(value) for value in table.children(2))
        operators = [".".join(filter(None, (t.text(0), t.text(1)))) for t in table.children(6)]
        delegates = tuple(self._delegate(entry, name) for entry in table.children(7))
        chains = list(table.children(5))
        if len(chains) > 1:
            raise damaged(f"method '{name}' has {len(chains)} chains; the runtime executes one")
        method = PteMethod(
            name,
            values,
            inputs=table.numbers(3, "int32"),
            outputs=table.numbers(4, "int32"),
            instructions=tuple(_instruction(t, operators) for c in chains for t in c.children(2)),
            delegates=delegates,
        )
        _check_indices(method)
        return method

    def _value(self, table: Table) -> Value:
        kind = table.scalar(0, "uint8")
        if kind in (0, 1):
            return None
        content = table.child(1)
        if content is None or kind not in _VALUES:
            raise damaged(f"a value of unknown kind {kind}")
        return _VALUES[kind](self, content)

    def _tensor(self, table: Table) -> TensorValue:
        scalar_type = table.scalar(0, "int8")
        if scalar_type not in SCALAR_TYPES:
            raise damaged(f"a tensor of unknown scalar type {scalar_type}")
        shape = table.numbers(2, "int32")
        if min(shape, default=0) < 0 or len(shape) > MAX_AXES:
            raise damaged(f"a tensor of shape {shape[: MAX_AXES + 1]}")
        dim_order = table.numbers(3, "uint8")
        if dim_order and sorted(dim_order) != list(range(len(shape))):
            raise damaged(f"a tensor of {len(shape)} axes in the order {dim_order[:MAX_AXES]}")
        if table.scalar(1, "int32"):
            raise damaged("a tensor that begins inside its data")
        data = initial = None
        if number := table.scalar(5, "uint32"):
            if table.child(6) is None:
                data = self._constant_data(number)
            else:
                initial = self._initial_data(number, table.child(9))
        dynamism = table.scalar(8, "int8")
        if dynamism not in _DYNAMISMS:
            raise damaged(f"a tensor of unknown shape dynamism {dynamism}")
        resizable = dynamism != _STATIC
        return TensorValue(SCALAR_TYPES[scalar_type], shape, data, dim_order, resizable, initial)

    def _constant_data(self, index: int) -> memoryview | None:
        if self._constants:
            if index >= len(self._constants):
                raise damaged(f"constant {index} of {len(self._constants)}")
            return self._constants[index]
        if self._constant_segment is None:
            raise damaged(f"constant {index} of none")
        return self._part(self._constant_segment, index, "constant")

    def _initial_data(self, index: int, extra: Table | None) -> memoryview:
        number = 0 if extra is None else extra.scalar(0, "uint64")
        if number >= len(self._mutable_segments):
            raise damaged(f"the first value of a buffer, {index}, is not there")
        return self._part(self._mutable_segments[number], index, "the first value of a buffer,")

    def _part(self, parts: Table, index: int, what: str) -> memoryview:
        """Return a part of a segment, up to the segment's end."""
        offsets = parts.numbers(1, "uint64")
        if index >= len(offsets):
            raise damaged(f"{what} {index} of {len(offsets)}")
        segment = self._segment(parts.scalar(0, "uint32"), f"{what} {index}")
        return cut(segment, offsets[index], len(segment) - offsets[index], f"{what} {index}")

    def _delegate(self, table: Table, method: str) -> DelegateData:
        backend, reference = table.text(0), table.child(1)
        what = f"method '{method}', delegate {backend}"
        if reference is None:
            raise damaged(f"{what} has no data")
        index = reference.scalar(1, "uint32")
        if reference.scalar(0, "int8") == _IN_SEGMENT:
            data: memoryview | None = self._segment(index, what)
        else:
            data = self._inline[index] if index < len(self._inline) else None
        if data is None:
            raise damaged(f"{what} points at data {index}, which is not there")
        specs = tuple((t.text(0), bytes(t.vector(1, 1) or b"")) for t in table.children(2))
        return DelegateData(backend, data, specs)


_VALUES: dict[int, Callable[[ProgramTables, Table], Value]] = {
    2: lambda _, table: table.scalar(0, "int64"),
    3: lambda _, table: bool(table.scalar(0, "bool")),
    4: lambda _, table: table.scalar(0, "float64"),
    5: ProgramTables._tensor,
    6: lambda _, table: table.text(0),
    7: lambda _, table: ListValue(table.numbers(0, "int64")),
    8: lambda _, table: tuple(table.numbers(0, "float64")),
    9: lambda _, table: tuple(bool(item) for item in table.numbers(0, "uint8")),
    10: lambda _, table: ListValue(table.numbers(0, "int32")),
    11: lambda _, table: ListValue(table.numbers(0, "int32")),
}
"""The number of a `KernelTypes` member -> how it is read. An IntList holds value indices, too."""


def _instruction(table: Table, operators: list[str]) -> Instruction:
    kind, content = table.scalar(0, "uint8"), table.child(1)
    match kind:
        case _ if content is None:
            raise damaged("an instruction without content")
        case 1:
            index = content.scalar(0, "int32")
            if not 0 <= index < len(operators):
                raise damaged(f"operator {index} of {len(operators)}")
            return KernelCall(operators[index], content.numbers(1, "int32"))
        case 2:
            return DelegateCall(content.scalar(0, "int32"), content.numbers(1, "int32"))
        case 3:
            return MoveCall(content.scalar(0, "int32"), content.scalar(1, "int32"))
        case 4:
            return JumpFalseCall(content.scalar(0, "int32"), content.scalar(1, "int32"))
        case 5:
            return FreeCall(content.scalar(0, "int32"))
    raise damaged(f"an instruction of unknown kind {kind}")


def _check_indices(method: PteMethod) -> None:
    """Raise ArtifactError unless every index names a value, a delegate or an instruction."""
    used = [*method.inputs, *method.outputs]
    for value in method.values:
        used += [i for i in value.items if i != -1] if isinstance(value, ListValue) else []
    for instruction in method.instructions:
        match instruction:
            case KernelCall(_, args):
                used += args
            case DelegateCall(delegate, args):
                used += args
                if not 0 <= delegate < len(method.delegates):
                    raise damaged(f"method '{method.name}' calls delegate {delegate}")
            case MoveCall(source, target):
                used += [source, target]
            case JumpFalseCall(condition, destination):
                used.append(condition)
                if not 0 <= destination <= len(method.instructions):
                    raise damaged(f"method '{method.name}' jumps to {destination}")
            case FreeCall(freed):
                used.append(freed)
    if any(not 0 <= index < len(method.values) for index in used):
        raise damaged(f"method '{method.name}' uses a value that it does not have")
