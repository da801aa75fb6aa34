"""Mutations of a package's specification that no execution shows: descriptions and types."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from harness.artifact.proto import feature_types, proto_module
from harness.suites.mutants.edit import Export, Mutation
from harness.suites.mutants.faults import KINDS, MULTI, PTE, SINGLE, fault
from harness.suites.mutants.judge import judge_bytes
from harness.suites.mutants.of_programs import FUNCTION, blocks, epsilons

row = partial(fault, room="graph", judge=judge_bytes, alone=True, tested=KINDS)


# Specification and descriptions


def model(**changed: Any) -> Mutation:
    """Set fields of a `Model` message."""

    def mutate(export: Export) -> None:
        for name, value in changed.items():
            setattr(blocks(export).model, name, value)

    return mutate


@row("a program of version 2", {"descriptions": "package 1: its ML Program: its version is 2"})
def program_version(export: Export) -> None:
    """Let an ML Program be of version 2."""
    blocks(export).model.mlProgram.version = 2


@row(
    "the default of one function",
    {"descriptions": "package 1: defaultFunctionName is 'main'"},
    modes=SINGLE,
)
def default_of_one(export: Export) -> None:
    """Name the default function of a package that describes no functions."""
    blocks(export).model.description.defaultFunctionName = export.functions[0]


@row(
    "no such function", {"descriptions": "package 1: it describes a function 'verify'"}, modes=MULTI
)
def describe_nothing(export: Export) -> None:
    """Describe a function that does not exist, without features."""
    blocks(export).model.description.functions.add(name="verify")


@row(
    "a function described twice",
    {"descriptions": r"package 1: it describes the function '\w+' 2 times"},
    modes=MULTI,
)
def describe_twice(export: Export) -> None:
    """Describe a function twice."""
    functions = blocks(export).model.description.functions
    last = functions[-1]
    functions.add().CopyFrom(last)


def described_input(change: Callable[[Any], object]) -> Mutation:
    """Change the description of the last input of the first function."""

    def mutate(export: Export) -> None:
        description = blocks(export).model.description
        change((description.functions[0] if description.functions else description).input[-1].type)

    return mutate


def allow_a_range(feature: Any) -> None:
    """Allow more sizes of the first axis than the function has."""
    array = feature.multiArrayType
    for size in array.shape:
        array.shapeRange.sizeRanges.add(lowerBound=size, upperBound=size)
    array.shapeRange.sizeRanges[0].upperBound += 7


def enumerate_others(feature: Any) -> None:
    """Enumerate one shape, which is not the default."""
    array = feature.multiArrayType
    array.enumeratedShapes.shapes.add(shape=[size + 1 for size in array.shape])


def make_optional(feature: Any) -> None:
    """Describe an input as optional."""
    feature.isOptional = True


def describe_fp32(feature: Any) -> None:
    """Describe an fp16 input as FLOAT32."""
    numbers = {dtype: number for number, dtype in feature_types().items()}
    feature.multiArrayType.dataType = numbers["float32"]


@row(
    "an input that is not described", {"metadata-names": "inputs: metadata.json's order is"}, "U27"
)
def describe_one_fewer(export: Export) -> None:
    """Leave the last input of the first function out of its description."""
    description = blocks(export).model.description
    del (description.functions[0] if description.functions else description).input[-1]


@row(
    "functions described as one",
    {"descriptions": "package 1: defaultFunctionName is 'forward', although no functions are"},
    "CT 2154",
    modes=MULTI,
    alone=False,
)
def describe_the_model(export: Export) -> None:
    """Describe the first function as the model, as tools for one function expect it."""
    description = blocks(export).model.description
    first = description.functions[0]
    description.input.extend(first.input)
    description.output.extend(first.output)
    del description.functions[:]


# Types in a program


@row(
    "another size of an input",
    {"descriptions": rf"{FUNCTION}input '\w+': is described with shape .* the function has"},
)
def function_input_type(export: Export) -> None:
    """Let a function take an input of another size than its description says."""
    inputs = blocks(export).model.mlProgram.functions[export.functions[0]].inputs
    inputs[-1].type.tensorType.dimensions[-1].constant.size += 1


def operation(kind: str, change: Callable[[Any], object]) -> Mutation:
    """Change the first operation of a type in the first function."""

    def mutate(export: Export) -> None:
        change(blocks(export).operations(export.functions[0], kind)[0])

    return mutate


def declare_dtype(name: str) -> Callable[[Any], None]:
    """Declare another dtype of an operation's result."""

    def change(op: Any) -> None:
        op.outputs[0].type.tensorType.dataType = proto_module("MIL_pb2").DataType.Value(name)

    return change


def declare_rank(op: Any) -> None:
    """Declare a rank that is not the number of dimensions."""
    op.outputs[0].type.tensorType.rank += 1


@row("no identifier", {"types": f"{FUNCTION}silu '1-silu': .* is not an"})
def rename_result(export: Export) -> None:
    """Give a value a name that is not an identifier of MIL."""
    block = blocks(export).block(export.functions[0])
    old = next(op for op in block.operations if op.type == "silu").outputs[0].name
    for op in block.operations:
        named = [*op.outputs, *(b for a in op.inputs.values() for b in a.arguments)]
        for one in named:
            if one.name == old:
                one.name = "1-silu"


@row(
    "an epsilon of another dtype",
    {"types": rf"{FUNCTION}add '\w+': 'y' is FLOAT32, but 'x' is FLOAT16"},
    kinds=PTE,
    tested=PTE,
)
def wide_epsilon(export: Export) -> None:
    """Make an epsilon FLOAT32, value and declaration, in an fp16 program."""
    payload, function = blocks(export), export.functions[0]
    held = epsilons(payload, function)[0]
    for op in payload.operations(function, "const"):
        if op.attributes["val"].immediateValue.tensor is held:
            break
    (value,) = struct.unpack("<e", held.bytes.values)
    held.floats.values.append(value)
    for declared in (op.outputs[0].type, op.attributes["val"].type):
        declared.tensorType.dataType = proto_module("MIL_pb2").FLOAT32


@row(
    "a constant too small",
    {"types": rf"{FUNCTION}const '\w+': declares FLOAT16\[\d+\], but its value is FLOAT16"},
)
def shrink_a_constant(export: Export) -> None:
    """Declare one element fewer than a constant has."""
    for op in blocks(export).operations(export.functions[0], "const"):
        dimensions = op.outputs[0].type.tensorType.dimensions
        if dimensions and op.attributes["val"].HasField("blobFileValue"):
            dimensions[-1].constant.size -= 1
            return
    raise AssertionError("no weight is a constant")


@row("an unread input", {"types": rf"{FUNCTION}input '\w+': no operation reads it"})
def read_another_input(export: Export) -> None:
    """Let everything that reads the last input read the one before it, which has its shape."""
    payload = blocks(export)
    message = payload.model.mlProgram.functions[export.functions[0]]
    same = str(message.inputs[-1].type)
    last = message.inputs[-1].name
    other = next(v.name for v in message.inputs if str(v.type) == same and v.name != last)
    for op in payload.block(export.functions[0]).operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name == last:
                    binding.name = other


row(
    "an old specification",
    {
        "descriptions": r"package 1: function '\w+': opset CoreML8 is newer than specification "
        r"version 8"
    },
)(model(specificationVersion=8))


row(
    "an unknown specification",
    {"descriptions": "package 1: its specification: version 99 cannot hold"},
)(model(specificationVersion=99))


row("an updatable model", {"descriptions": "package 1: .*isUpdatable"})(model(isUpdatable=True))


row(
    "a range",
    {"descriptions": rf"{FUNCTION}input '\w+': its description allows several sizes of axis 0"},
)(described_input(allow_a_range))


row(
    "an enumeration",
    {
        "descriptions": rf"{FUNCTION}input '\w+': its default shape .* is not one of those "
        rf"enumerated"
    },
)(described_input(enumerate_others))


row(
    "an optional input",
    {"descriptions": rf"{FUNCTION}input '\w+': is optional, but a delegate always"},
)(described_input(make_optional))


row(
    "another dtype described",
    {"descriptions": rf"{FUNCTION}input '\w+': is described as FLOAT32, but .* has FLOAT16"},
)(described_input(describe_fp32))


row(
    "another dtype declared",
    {"types": rf"{FUNCTION}add '(\w+)': declares '\1' INT32, but it gives FLOAT16"},
)(operation("add", declare_dtype("INT32")))


row("a wrong rank", {"types": rf"{FUNCTION}softmax '(\w+)': '\1' has rank 5 and 4 dimensions"})(
    operation("softmax", declare_rank)
)
