"""Reads an ExecuTorch program (.pte) from a memory map.

Source of the layout: ExecuTorch's `schema/program.fbs` and `schema/extended_header.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.artifact.files import MAX_AXES, cut, map_file
from harness.artifact.flatbuffer import (
    ONLY_FIELD,
    AllocationDetailsField,
    BackendDelegateDataReferenceField,
    BackendDelegateField,
    ChainField,
    CompileSpecField,
    DataSegmentField,
    DelegateCallField,
    EValueField,
    ExecutionPlanField,
    ExtraTensorInfoField,
    InstructionArguments,
    InstructionField,
    JumpFalseCallField,
    KernelCallField,
    KernelTypes,
    MoveCallField,
    NamedDataField,
    OperatorField,
    ProgramField,
    SubsegmentOffsetsField,
    Table,
    TensorField,
    damaged,
    extents,
)
from harness.artifact.plan import check_indices
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
_SEGMENT_ALIGNMENT = 128  # bytes, by which an exporter may fill up the last segment
_IN_SEGMENT = 1  # DataLocation.SEGMENT
_DYNAMISMS = range(3)  # TensorShapeDynamism
_STATIC, _UNBOUNDED = 0, 2

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
    """Read the tables of a .pte; raises ArtifactError when the file is truncated or not a .pte."""
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


def program_tables(data: memoryview) -> memoryview:
    """Return a program's tables without its segments; empty when payloads lie inside the tables."""
    tables, segments = extents(data)
    return tables if segments else memoryview(b"")


class ProgramTables:
    """Reads the tables of a program, each once.

    Delegates and keys that name one segment get the same view of it. Different segments together
    have no more bytes than the file: overlapping ones would let a small file hold many packages.
    """

    def __init__(self, data: memoryview) -> None:
        self._file = data
        tables, self._segment_base = extents(data)
        self._root = Table.root(tables)
        self._constants = self._buffers(ProgramField.CONSTANT_BUFFER)
        self._inline = self._buffers(ProgramField.BACKEND_DELEGATE_DATA)
        self._segments = list(self._root.children(ProgramField.SEGMENTS))
        self._views: dict[tuple[int, int], memoryview] = {}
        self._unread = len(data)
        self._parts: dict[int, tuple[int, ...]] = {}
        self._constant_segment = self._root.child(ProgramField.CONSTANT_SEGMENT)
        self._mutable_segments = list(self._root.children(ProgramField.MUTABLE_DATA_SEGMENTS))
        self._used = {
            table.scalar(SubsegmentOffsetsField.SEGMENT_INDEX, "uint32")
            for table in (self._constant_segment, *self._mutable_segments)
            if table is not None
        }

    def program(self) -> Pte:
        """Read all tables; payloads and constants stay slices of the file."""
        named_data: dict[str, memoryview] = {}
        keys = []
        for table in self._root.children(ProgramField.NAMED_DATA):
            key = table.text(NamedDataField.KEY)
            index = table.scalar(NamedDataField.SEGMENT_INDEX, "uint32")
            keys.append(key)  # the runtime takes the first of two equal ones
            named_data.setdefault(key, self._segment(index, f"data '{key}'"))
        methods: dict[str, PteMethod] = {}
        for table in self._root.children(ProgramField.EXECUTION_PLAN):
            method = self._method(table)
            if method.name in methods:
                raise damaged(f"two methods are named '{method.name}'")
            methods[method.name] = method
        unused = {
            f"segment {index}": table.scalar(DataSegmentField.SIZE, "uint64")
            for index, table in enumerate(self._segments)
            if index not in self._used
        }
        if (behind := self._bytes_behind()) > _SEGMENT_ALIGNMENT:
            unused["the end of the file"] = behind
        return Pte(methods, named_data, len(self._file), tuple(keys), unused)

    def _bytes_behind(self) -> int:
        """Return the number of bytes behind the last segment, 0 without segments."""
        ends = [
            table.scalar(DataSegmentField.OFFSET, "uint64")
            + table.scalar(DataSegmentField.SIZE, "uint64")
            for table in self._segments
        ]
        return len(self._file) - self._segment_base - max(ends) if ends else 0

    def _buffers(self, field: ProgramField) -> list[memoryview | None]:
        return [table.vector(ONLY_FIELD, 1) for table in self._root.children(field)]

    def _segment(self, index: int, what: str) -> memoryview:
        if index >= len(self._segments):
            raise damaged(f"{what} lies in segment {index} of {len(self._segments)}")
        self._used.add(index)
        table = self._segments[index]
        offset = table.scalar(DataSegmentField.OFFSET, "uint64")
        size = table.scalar(DataSegmentField.SIZE, "uint64")
        if (offset, size) not in self._views:
            self._views[offset, size] = cut(self._file, self._segment_base + offset, size, what)
            self._unread -= size
            if self._unread < 0:
                raise damaged("its segments overlap")
        return self._views[offset, size]

    def _method(self, table: Table) -> PteMethod:
        field = ExecutionPlanField
        name = table.text(field.NAME)
        values = tuple(self._value(value) for value in table.children(field.VALUES))
        operators = [_operator_name(entry) for entry in table.children(field.OPERATORS)]
        delegates = tuple(self._delegate(entry, name) for entry in table.children(field.DELEGATES))
        chains = list(table.children(field.CHAINS))
        if len(chains) > 1:
            raise damaged(f"method '{name}' has {len(chains)} chains; the runtime executes one")
        method = PteMethod(
            name,
            values,
            inputs=table.numbers(field.INPUTS, "int32"),
            outputs=table.numbers(field.OUTPUTS, "int32"),
            instructions=tuple(
                _instruction(entry, operators)
                for chain in chains
                for entry in chain.children(ChainField.INSTRUCTIONS)
            ),
            delegates=delegates,
            buffer_sizes=table.numbers(field.NON_CONST_BUFFER_SIZES, "int64"),
        )
        check_indices(method)
        return method

    def _value(self, table: Table) -> Value:
        kind = table.scalar(EValueField.VAL_TYPE, "uint8")
        if kind in (KernelTypes.NONE, KernelTypes.NULL):
            return None
        content = table.child(EValueField.VAL)
        if content is None or kind not in _VALUES:
            raise damaged(f"a value of unknown kind {kind}")
        return _VALUES[kind](self, content)

    def _tensor(self, table: Table) -> TensorValue:
        field = TensorField
        scalar_type = table.scalar(field.SCALAR_TYPE, "int8")
        if scalar_type not in SCALAR_TYPES:
            raise damaged(f"a tensor of unknown scalar type {scalar_type}")
        shape = table.numbers(field.SIZES, "int32")
        if min(shape, default=0) < 0 or len(shape) > MAX_AXES:
            raise damaged(f"a tensor of shape {shape[: MAX_AXES + 1]}")
        dim_order = table.numbers(field.DIM_ORDER, "uint8")
        if dim_order and sorted(dim_order) != list(range(len(shape))):
            raise damaged(f"a tensor of {len(shape)} axes in the order {dim_order[:MAX_AXES]}")
        if table.scalar(field.STORAGE_OFFSET, "int32"):
            raise damaged("a tensor that begins inside its data")
        data = initial = None
        memory = table.child(field.ALLOCATION_INFO)
        if number := table.scalar(field.DATA_BUFFER_IDX, "uint32"):
            if memory is None:
                data = self._constant_data(number)
            else:
                initial = self._initial_data(number, table.child(field.EXTRA_TENSOR_INFO))
        dynamism = table.scalar(field.SHAPE_DYNAMISM, "int8")
        if dynamism not in _DYNAMISMS:
            raise damaged(f"a tensor of unknown shape dynamism {dynamism}")
        return TensorValue(
            SCALAR_TYPES[scalar_type],
            shape,
            data,
            dim_order,
            resizable=dynamism != _STATIC,
            initial=initial,
            planned=None if memory is None else _planned(memory),
            unbounded=dynamism == _UNBOUNDED,
        )

    def _constant_data(self, index: int) -> memoryview | None:
        if self._constants:
            if index >= len(self._constants):
                raise damaged(f"constant {index} of {len(self._constants)}")
            return self._constants[index]
        if self._constant_segment is None:
            raise damaged(f"constant {index} of none")
        return self._part(self._constant_segment, index, "constant")

    def _initial_data(self, index: int, extra: Table | None) -> memoryview:
        field = ExtraTensorInfoField.MUTABLE_DATA_SEGMENTS_IDX
        number = 0 if extra is None else extra.scalar(field, "uint64")
        if number >= len(self._mutable_segments):
            raise damaged(f"the initial value {index} of a buffer does not exist")
        return self._part(self._mutable_segments[number], index, "the initial value of a buffer,")

    def _part(self, parts: Table, index: int, what: str) -> memoryview:
        """Return a segment's bytes from the start of part `index` to the segment's end."""
        if id(parts) not in self._parts:  # they are as many as the tensors that name one each
            self._parts[id(parts)] = parts.numbers(SubsegmentOffsetsField.OFFSETS, "uint64")
        offsets = self._parts[id(parts)]
        if index >= len(offsets):
            raise damaged(f"{what} {index} of {len(offsets)}")
        number = parts.scalar(SubsegmentOffsetsField.SEGMENT_INDEX, "uint32")
        segment = self._segment(number, f"{what} {index}")
        return cut(segment, offsets[index], len(segment) - offsets[index], f"{what} {index}")

    def _delegate(self, table: Table, method: str) -> DelegateData:
        backend = table.text(BackendDelegateField.ID)
        reference = table.child(BackendDelegateField.PROCESSED)
        what = f"method '{method}', delegate {backend}"
        if reference is None:
            raise damaged(f"{what} has no data")
        index = reference.scalar(BackendDelegateDataReferenceField.INDEX, "uint32")
        location = reference.scalar(BackendDelegateDataReferenceField.LOCATION, "int8")
        if location == _IN_SEGMENT:
            data: memoryview | None = self._segment(index, what)
        else:
            data = self._inline[index] if index < len(self._inline) else None
        if data is None:
            raise damaged(f"{what} refers to data {index}, which does not exist")
        specs = table.children(BackendDelegateField.COMPILE_SPECS)
        return DelegateData(backend, data, tuple(map(_compile_spec, specs)))


_VALUES: dict[int, Callable[[ProgramTables, Table], Value]] = {
    KernelTypes.INT: lambda _, table: table.scalar(ONLY_FIELD, "int64"),
    KernelTypes.BOOL: lambda _, table: bool(table.scalar(ONLY_FIELD, "bool")),
    KernelTypes.DOUBLE: lambda _, table: table.scalar(ONLY_FIELD, "float64"),
    KernelTypes.TENSOR: ProgramTables._tensor,
    KernelTypes.STRING: lambda _, table: table.text(ONLY_FIELD),
    KernelTypes.INT_LIST: lambda _, table: ListValue(table.numbers(ONLY_FIELD, "int64")),
    KernelTypes.DOUBLE_LIST: lambda _, table: tuple(table.numbers(ONLY_FIELD, "float64")),
    KernelTypes.BOOL_LIST: lambda _, table: tuple(map(bool, table.numbers(ONLY_FIELD, "uint8"))),
    KernelTypes.TENSOR_LIST: lambda _, table: ListValue(table.numbers(ONLY_FIELD, "int32")),
    KernelTypes.OPTIONAL_TENSOR_LIST: lambda _, table: ListValue(
        table.numbers(ONLY_FIELD, "int32")
    ),
}
"""The kind of a value -> the function that reads it. An IntList holds indices of values, too."""


def _planned(table: Table) -> tuple[int, int]:
    """Return a tensor's place in the memory plan: the number of a buffer, an offset in bytes."""
    field = AllocationDetailsField
    low, high = (
        table.scalar(part, "uint32") for part in (field.MEMORY_OFFSET_LOW, field.MEMORY_OFFSET_HIGH)
    )
    return table.scalar(field.MEMORY_ID, "uint32"), low + (high << 32)


def _operator_name(table: Table) -> str:
    name, overload = table.text(OperatorField.NAME), table.text(OperatorField.OVERLOAD)
    return ".".join(filter(None, (name, overload)))


def _compile_spec(table: Table) -> tuple[str, bytes]:
    return table.text(CompileSpecField.KEY), bytes(table.vector(CompileSpecField.VALUE, 1) or b"")


def _instruction(table: Table, operators: list[str]) -> Instruction:
    kind = table.scalar(InstructionField.INSTR_ARGS_TYPE, "uint8")
    content = table.child(InstructionField.INSTR_ARGS)
    if content is None:
        raise damaged("an instruction without content")
    match kind:
        case InstructionArguments.KERNEL_CALL:
            index = content.scalar(KernelCallField.OP_INDEX, "int32")
            if not 0 <= index < len(operators):
                raise damaged(f"operator {index} of {len(operators)}")
            return KernelCall(operators[index], content.numbers(KernelCallField.ARGS, "int32"))
        case InstructionArguments.DELEGATE_CALL:
            index = content.scalar(DelegateCallField.DELEGATE_INDEX, "int32")
            return DelegateCall(index, content.numbers(DelegateCallField.ARGS, "int32"))
        case InstructionArguments.MOVE_CALL:
            source, target = MoveCallField
            return MoveCall(content.scalar(source, "int32"), content.scalar(target, "int32"))
        case InstructionArguments.JUMP_FALSE_CALL:
            condition = content.scalar(JumpFalseCallField.COND_VALUE_INDEX, "int32")
            destination = content.scalar(JumpFalseCallField.DESTINATION_INSTRUCTION, "int32")
            return JumpFalseCall(condition, destination)
        case InstructionArguments.FREE_CALL:
            return FreeCall(content.scalar(ONLY_FIELD, "int32"))
    raise damaged(f"an instruction of unknown kind {kind}")
