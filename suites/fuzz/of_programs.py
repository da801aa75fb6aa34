"""Mutations of an ML Program's fields: each leaves a message that is well formed but wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from harness.mil.operation import IMPLEMENTATIONS

_VALUES: dict[str, tuple[Any, ...]] = {
    "ints": (0, -1, 1, 2, 3, -5, 100_000, 1 << 30, -(1 << 31), (1 << 31) - 1),
    "longInts": (0, -1, 1 << 40, -(1 << 63), (1 << 63) - 1),
    "floats": (0.0, -1e30, 1e30, float("nan"), float("inf"), -float("inf")),
    "strings": ("", "x", "int8", "fp16", "reflect", "replicate", "TANH_APPROXIMATION", "\x1b[2J"),
    "bools": (True, False),
}
_SIZES = (0, 1, 2, 3, 1 << 20, 1 << 27, 1 << 30, 1 << 40, (1 << 64) - 1)
_DTYPES = (0, 1, 2, 10, 11, 12, 13, 21, 22, 23, 24, 25, 31, 32, 35, 99)
_FILES = ("", "weights/weight.bin", "@model_path/../../weight.bin", "/etc/passwd", "@model_path/")
_OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML9", "CoreML99", "")


def mutated(model: Any, rng: random.Random) -> bytes:
    """Return a specification with one to three changes in its functions' operations."""
    broken = type(model)()
    broken.CopyFrom(model)
    function = broken.mlProgram.functions[rng.choice(sorted(broken.mlProgram.functions))]
    for _ in range(rng.randint(1, 3)):
        rng.choice(CHANGES)(function, rng)
    return bytes(broken.SerializeToString(deterministic=True))


def _blocks(function: Any) -> list[Any]:
    """Return every block of a function, those inside operations too."""
    found = list(_ordered(function.block_specializations))
    for block in found:  # it grows while it is walked
        found.extend(inner for operation in block.operations for inner in operation.blocks)
    return found


def _ordered(messages: Any) -> list[Any]:
    """Return a map's values by key: its own order changes from process to process."""
    return [messages[key] for key in sorted(messages)]


def _operation(function: Any, rng: random.Random) -> Any:
    return rng.choice([op for block in _blocks(function) for op in block.operations])


def _values(function: Any) -> Iterator[Any]:
    """Yield every constant: attributes, and values that are bound to inputs directly."""
    for block in _blocks(function):
        for operation in block.operations:
            yield from _ordered(operation.attributes)
            for argument in _ordered(operation.inputs):
                yield from (b.value for b in argument.arguments if b.HasField("value"))


def value(function: Any, rng: random.Random) -> None:
    """Replace, remove or repeat a number or a text of a constant."""
    tensors = [v.immediateValue.tensor for v in _values(function)]
    tensor = rng.choice([t for t in tensors if t.WhichOneof("value")])
    field = tensor.WhichOneof("value")
    if field == "bytes":
        data = bytearray(tensor.bytes.values or b"\0")
        data[rng.randrange(len(data))] = rng.randrange(256)
        tensor.bytes.values = bytes(data)[rng.randrange(2) * rng.randrange(len(data)) :]
        return
    values = getattr(tensor, field).values
    index = rng.randrange(len(values)) if len(values) else 0
    values[index : index + 1] = [rng.choice(_VALUES.get(field, (0,)))] * rng.choice((1, 1, 1, 0, 2))


def offset(function: Any, rng: random.Random) -> None:
    """Move a constant to another offset of the weight file, or to another file."""
    blobs = [v.blobFileValue for v in _values(function) if v.HasField("blobFileValue")]
    if not blobs:
        return value(function, rng)
    blob = rng.choice(blobs)
    if rng.random() < 0.3:
        blob.fileName = rng.choice(_FILES)
    else:
        blob.offset = rng.choice([rng.choice(blobs).offset, *_SIZES, blob.offset + 1])
    return None


def source(function: Any, rng: random.Random) -> None:
    """Let an operation read another value, perhaps one that is defined later."""
    names = [o.name for b in _blocks(function) for op in b.operations for o in op.outputs]
    operation = _operation(function, rng)
    for argument in _ordered(operation.inputs):
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name" and rng.random() < 0.5:
                binding.name = rng.choice([*names, "nothing"])


def shape(function: Any, rng: random.Random) -> None:
    """Declare a result with another size, or with one axis more or less."""
    for output in _operation(function, rng).outputs:
        dimensions = output.type.tensorType.dimensions
        change = rng.random()
        if change < 0.15:
            dimensions.add().constant.size = rng.choice(_SIZES)
        elif change < 0.3 and dimensions:
            del dimensions[rng.randrange(len(dimensions))]
        elif change < 0.4 and dimensions:
            rng.choice(dimensions).unknown.variadic = rng.random() < 0.5
        elif dimensions:
            rng.choice(dimensions).constant.size = rng.choice(_SIZES)


def everything_larger(function: Any, rng: random.Random) -> None:
    """Enlarge one size wherever it is declared, in constants too: nothing contradicts it."""
    sizes = {
        d.constant.size
        for block in _blocks(function)
        for op in block.operations
        for output in op.outputs
        for d in output.type.tensorType.dimensions
    }
    old, new = rng.choice(sorted(sizes or {1})), rng.choice((1 << 12, 1 << 16, 1 << 24, 1 << 28))
    types = [v.type for v in function.inputs]
    types += [o.type for b in _blocks(function) for op in b.operations for o in op.outputs]
    for declared in types:
        for dimension in declared.tensorType.dimensions:
            if dimension.constant.size == old:
                dimension.constant.size = new
    for constant in _values(function):
        values = constant.immediateValue.tensor.ints.values
        for index, number in enumerate(values):
            if number == old:
                values[index] = new


def dtype(function: Any, rng: random.Random) -> None:
    """Declare a result of another dtype."""
    for output in _operation(function, rng).outputs:
        output.type.tensorType.dataType = rng.choice(_DTYPES)


def kind(function: Any, rng: random.Random) -> None:
    """Replace an operation's type."""
    _operation(function, rng).type = rng.choice([*sorted(IMPLEMENTATIONS), "const", "", "x"])


def parameters(function: Any, rng: random.Random) -> None:
    """Remove a parameter of an operation, or give it those of another."""
    operation, other = _operation(function, rng), _operation(function, rng)
    if operation.inputs and rng.random() < 0.5:
        del operation.inputs[rng.choice(sorted(operation.inputs))]
    else:
        operation.inputs.MergeFrom(other.inputs)


def order(function: Any, rng: random.Random) -> None:
    """Remove or repeat an operation, or give it another's name."""
    operations = rng.choice(_blocks(function)).operations
    if not operations:
        return
    change, index = rng.random(), rng.randrange(len(operations))
    if change < 0.4:
        del operations[index]
    elif change < 0.7:
        operations.add().CopyFrom(operations[index])
    elif operations[index].outputs:
        name = rng.choice(operations).outputs
        operations[index].outputs[0].name = name[0].name if name else ""


def blocks(function: Any, rng: random.Random) -> None:
    """Change a block's results, give an operation another's blocks, or change the opset."""
    change, block = rng.random(), rng.choice(_blocks(function))
    if change < 0.4 and block.outputs:
        block.outputs[rng.randrange(len(block.outputs))] = rng.choice(
            [o.name for op in block.operations for o in op.outputs] or ["nothing"]
        )
    elif change < 0.7:
        inner = [op for b in _blocks(function) for op in b.operations if op.blocks]
        copied = [b for op in inner for b in op.blocks]
        if copied:  # as bytes: a block that is copied into itself would never end
            data = rng.choice(copied).SerializeToString(deterministic=True)
            _operation(function, rng).blocks.add().ParseFromString(data)
    else:
        function.opset = rng.choice(_OPSETS)


CHANGES = (
    *(value, value, value, offset, source, shape, shape),
    *(everything_larger, dtype, kind, parameters, order, blocks),
)
