"""Writes small .pte files of any content with ExecuTorch's own serializer."""

from executorch.exir import schema
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir._serialize.data_serializer import DataEntry
from executorch.exir.scalar_type import ScalarType


def tensor(*shape, dtype="FLOAT", buffer=0, order=None):
    """Return a tensor value; `buffer` is the number of a constant from 1 up, or 0 without one."""
    order = list(order or range(len(shape)))
    static = schema.TensorShapeDynamism.STATIC
    return schema.Tensor(ScalarType[dtype], 0, list(shape), order, False, 0, buffer, None, static)


def plan(name, values, inputs=(), outputs=(), instructions=(), operators=(), delegates=()):
    """Return a method; `delegates` holds (backend, number of its payload)."""
    return schema.ExecutionPlan(
        name=name,
        container_meta_type=schema.ContainerMetadata("", ""),
        values=[schema.EValue(value) for value in values],
        inputs=list(inputs),
        outputs=list(outputs),
        chains=[schema.Chain([], [], [schema.Instruction(i) for i in instructions], None)],
        operators=[schema.Operator(*name.split(".")) for name in operators],
        delegates=[
            schema.BackendDelegate(
                backend,
                schema.BackendDelegateDataReference(schema.DataLocation.INLINE, number),
                [],
            )
            for backend, number in delegates
        ],
        non_const_buffer_sizes=[0],
    )


def serialize(plans, constants=(), payloads=(), named=None, in_segments=True):
    """Return the bytes of a program; payloads and constants are in segments, or inline."""
    program = schema.Program(
        version=0,
        execution_plan=list(plans),
        constant_buffer=[schema.Buffer(data) for data in (b"", *constants)],
        backend_delegate_data=[schema.BackendDelegateInlineData(data) for data in payloads],
        segments=[],
        constant_segment=schema.SubsegmentOffsets(0, []),
    )
    store = None
    if named:
        entries = {key: DataEntry(number, 16, None) for number, key in enumerate(named)}
        store = NamedDataStoreOutput(list(named.values()), entries, {})
    file = PTEFile(program, named_data=store)
    return bytes(serialize_pte_binary(file, extract_delegate_segments=in_segments))
