"""Mutations that no execution shows: of a package's files, descriptions and types."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from harness.artifact.delegate import PACKAGE
from harness.artifact.package import MANIFEST
from harness.artifact.proto import feature_types, proto_module
from harness.suites.mutants.edit import Export, Mutation
from harness.suites.mutants.of_programs import blocks, epsilons
from harness.suites.mutants.of_weights import constant

_MANIFEST = f"{PACKAGE}/{MANIFEST}"


# Files of packages


def manifest(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Mutation:
    """Change a package's manifest: `change` takes it and the entry of its weights."""

    def mutate(export: Export) -> None:
        files = blocks(export).files
        content = json.loads(files[_MANIFEST])
        items = content["itemInfoEntries"]
        weights = next(key for key in items if key != content["rootModelIdentifier"])
        change(content, items[weights])
        files[_MANIFEST] = json.dumps(content).encode()

    return mutate


def root_key_twice(export: Export) -> None:
    """Name the root model twice in a manifest."""
    files = blocks(export).files
    content = files[_MANIFEST].rstrip().removesuffix(b"}")
    files[_MANIFEST] = content + b',"fileFormatVersion":"1.0.0"}'


def add_item(content: dict[str, Any], item: dict[str, Any]) -> None:
    """List a second item with the path of the weights."""
    content["itemInfoEntries"]["00000000-0000-0000-0000-000000000000"] = item | {"name": "more"}


def stray_file(export: Export) -> None:
    """Put a file into a package that its manifest does not list."""
    blocks(export).files[f"{PACKAGE}/Data/com.apple.CoreML/notes.txt"] = b"notes"


def empty_identifier(export: Export) -> None:
    """Leave the identifier of a package empty."""
    blocks(export).metadata["identifier"] = ""


def one_identifier(export: Export) -> None:
    """Give two packages one identifier."""
    first, second, *_ = export.payloads
    second.metadata["identifier"] = first.metadata["identifier"]


# Weight files


def count_one_more(export: Export) -> None:
    """Let the header of a weight file count one weight too many."""
    weights = blocks(export).weights
    struct.pack_into("<I", weights, 0, struct.unpack_from("<I", weights)[0] + 1)


def end_in_garbage(export: Export) -> None:
    """Append a few bytes to a weight file."""
    weights = blocks(export).weights
    weights.extend(bytes(-len(weights) % 64) + b"garbage")


def unused_bits(export: Export) -> None:
    """Let the entry of 4-bit weights tell 3 unused bits."""
    weights = blocks(export).weights
    for offset in offsets(weights):
        if struct.unpack_from("<I", weights, offset + 4)[0] == 8:  # INT4
            struct.pack_into("<Q", weights, offset + 24, 3)
            return
    raise AssertionError("no weight has 4 bits")


def shift_data(export: Export) -> None:
    """Let the entry of a weight point at the data of the one before it."""
    weights = blocks(export).weights
    first, second, *_ = offsets(weights)
    struct.pack_into("<Q", weights, second + 16, first + 64)


def offsets(weights: bytearray) -> Iterator[int]:
    """Yield the offsets of the entries in a weight file."""
    offset = 64
    while offset < len(weights):
        yield offset
        size, start = struct.unpack_from("<QQ", weights, offset + 8)
        offset = start + size + -(start + size) % 64


# Specification and descriptions


def model(**changed: Any) -> Mutation:
    """Set fields of a `Model` message."""

    def mutate(export: Export) -> None:
        for name, value in changed.items():
            setattr(blocks(export).model, name, value)

    return mutate


def program_version(export: Export) -> None:
    """Let an ML Program be of version 2."""
    blocks(export).model.mlProgram.version = 2


def default_of_one(export: Export) -> None:
    """Name the default function of a package that describes no functions."""
    blocks(export).model.description.defaultFunctionName = export.functions[0]


def describe_nothing(export: Export) -> None:
    """Describe a function that does not exist, without features."""
    blocks(export).model.description.functions.add(name="verify")


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


# Types in a program


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


def rename_result(export: Export) -> None:
    """Give a value a name that is not an identifier of MIL."""
    block = blocks(export).block(export.functions[0])
    old = next(op for op in block.operations if op.type == "silu").outputs[0].name
    for op in block.operations:
        named = [*op.outputs, *(b for a in op.inputs.values() for b in a.arguments)]
        for one in named:
            if one.name == old:
                one.name = "1-silu"


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


def shrink_a_constant(export: Export) -> None:
    """Declare one element fewer than a constant has."""
    for op in blocks(export).operations(export.functions[0], "const"):
        dimensions = op.outputs[0].type.tensorType.dimensions
        if dimensions and op.attributes["val"].HasField("blobFileValue"):
            dimensions[-1].constant.size -= 1
            return
    raise AssertionError("no weight is a constant")


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


def weight_in_program(export: Export) -> None:
    """Write the weights of a norm into the program of the first function."""
    payload, function = blocks(export), export.functions[0]
    reference = constant(payload, function, "norm_weight")
    _, _, size, start = struct.unpack_from("<IIQQ", payload.weights, reference.offset)
    content, offset = bytes(payload.weights[start : start + size]), reference.offset
    for op in payload.operations(function, "const"):
        value = op.attributes["val"]
        if value.HasField("blobFileValue") and value.blobFileValue.offset == offset:
            value.immediateValue.tensor.bytes.values = content


def uncalled_function(export: Export) -> None:
    """Add a function that no method calls, described everywhere."""
    payload = blocks(export)
    first = export.functions[0]
    functions = payload.model.mlProgram.functions
    functions["verify"].CopyFrom(functions[first])
    entries = payload.model.description.functions
    entries.add().CopyFrom(next(entry for entry in entries if entry.name == first))
    entries[-1].name = "verify"
    payload.metadata["methods"]["verify"] = payload.metadata["methods"][first]
