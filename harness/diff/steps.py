"""Turns the operations of a function into steps that can be compared.

A step has a signature without names: the operation's type, the types of its inputs and outputs, and
its constants. Two functions whose values only have other names therefore give equal steps. A
constant is not a step; it belongs to the operations that use it.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from harness.artifact.proto import declared_shape, mil_types

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Argument, Block, Function, Operation, Value, ValueType

_MAX_CONSTANT = 60  # characters of a constant's text; a longer one is shown by its digest
_MAX_TYPE = 200
_DIGITS = 8  # of a digest in hex: enough to distinguish two constants of one operation
RETURN = "return"  # the type of the last step, whose inputs are the function's outputs


@dataclass(frozen=True)
class Step:
    """An operation; `inputs` and `outputs` are names of values.

    `weights` holds the name and the `Value` of each weight that it takes from the weight file, in
    the order of the signature.
    """

    type: str
    signature: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[str, Value], ...]

    @property
    def key(self) -> tuple[str, int, int, int]:
        """The properties that are equal for steps that correspond."""
        return self.signature, len(self.inputs), len(self.outputs), len(self.weights)

    @property
    def text(self) -> str:
        """The operation as one line."""
        return f"{', '.join(self.outputs)} = {self.signature}" if self.outputs else self.signature


def steps(function: Function, block: Block) -> list[Step]:
    """Return the operations of a function's block, and a last step for its outputs."""
    reader = _Scope(ChainMap(), ChainMap())
    reader.types.update({value.name: type_text(value.type) for value in function.inputs})
    found = reader.operations(block)
    taken = _Taken()
    texts = [reader.variable(name, taken) for name in block.outputs]
    return [*found, taken.step(RETURN, f"{RETURN}({', '.join(texts)})", ())]


class _Taken:
    """Collects the values and weights that an operation takes while it is read."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self.weights: list[tuple[str, Value]] = []

    def step(self, kind: str, signature: str, outputs: tuple[str, ...]) -> Step:
        return Step(kind, signature, tuple(self.values), outputs, tuple(self.weights))


class _Scope:
    """Reads operations in order, and keeps the types of variables and the constants so far."""

    def __init__(self, types: ChainMap[str, str], constants: ChainMap[str, Value]) -> None:
        self.types = types
        self.constants = constants

    def operations(self, block: Block) -> list[Step]:
        found = []
        for operation in block.operations:
            for output in operation.outputs:
                self.types[output.name] = type_text(output.type)
            if operation.type == "const" and operation.outputs and "val" in operation.attributes:
                self.constants[operation.outputs[0].name] = operation.attributes["val"]
            else:
                found.append(self._operation(operation))
        return found

    def _operation(self, operation: Operation) -> Step:
        taken = _Taken()
        outputs = tuple(output.name for output in operation.outputs)
        name = outputs[0] if outputs else operation.type
        parts = []
        for parameter, argument in sorted(operation.inputs.items()):
            label = f"{name}.{parameter}"
            texts = [self._binding(label, binding, taken) for binding in argument.arguments]
            parts.append(f"{parameter}={' & '.join(texts)}")
        for attribute, value in sorted(operation.attributes.items()):
            if attribute != "name":
                parts.append(f"{attribute}={_constant(f'{name}.{attribute}', value, taken)}")
        blocks = "".join(self._nested(block, taken) for block in operation.blocks)
        given = ", ".join(self.types[output] for output in outputs)
        signature = f"{operation.type}({', '.join(parts)}){blocks} -> {given}"
        return taken.step(operation.type, signature, outputs)

    def _binding(self, label: str, binding: Argument.Binding, taken: _Taken) -> str:
        if binding.WhichOneof("binding") == "value":
            return _constant(label, binding.value, taken)
        return self.variable(binding.name, taken)

    def variable(self, name: str, taken: _Taken) -> str:
        """Return the type of a variable, or the text of a constant."""
        if name in self.constants:
            return _constant(name, self.constants[name], taken)
        taken.values.append(name)
        return self.types.get(name, "unknown")

    def _nested(self, block: Block, taken: _Taken) -> str:
        """Return an inner block as text, with numbers for its own values.

        Values from outside the block become inputs of the operation.
        """
        inner = _Scope(self.types.new_child(), self.constants.new_child())
        numbers: dict[str, int] = {}
        for value in block.inputs:
            numbers[value.name] = len(numbers)
            inner.types[value.name] = type_text(value.type)
        texts = []
        for step in inner.operations(block):
            taken.weights += step.weights
            wires = [_wire(name, numbers, taken) for name in step.inputs]
            texts.append(f"{step.signature} of {' '.join(wires)}")
            for name in step.outputs:
                numbers[name] = len(numbers)
        given = _Taken()
        results = [inner.variable(name, given) for name in block.outputs]
        results += [_wire(name, numbers, taken) for name in given.values]
        taken.weights += given.weights
        return f" {{{'; '.join(texts)}: {' '.join(results)}}}"


def _constant(label: str, value: Value, taken: _Taken) -> str:
    if is_weight(value):
        taken.weights.append((label, value))
    return value_text(value)


def _wire(name: str, numbers: Mapping[str, int], taken: _Taken) -> str:
    if name in numbers:
        return f"%{numbers[name]}"
    taken.values.append(name)
    return "outer"


def type_text(value_type: ValueType) -> str:
    """Return a `ValueType` as text: `FLOAT16[1, 64]`, `state FLOAT16[8]`, `list of STRING[]`.

    The text of a type with hundreds of axes is a digest: each operation that takes it repeats it.
    """
    text = _type_text(value_type)
    return text if len(text) <= _MAX_TYPE else f"type #{_digest(value_type)}"


def _type_text(value_type: ValueType) -> str:
    match value_type.WhichOneof("type"):
        case "tensorType":
            tensor = value_type.tensorType
            dtype = mil_types().get(tensor.dataType)
            shape = ["?" if size is None else size for size in declared_shape(tensor)]
            return f"{dtype.name if dtype else tensor.dataType}{shape}"
        case "stateType":
            return f"state {type_text(value_type.stateType.wrappedType)}"
        case "listType":
            return f"list of {type_text(value_type.listType.type)}"
        case "tupleType":
            return f"({', '.join(map(type_text, value_type.tupleType.types))})"
    return _digest(value_type)


def is_weight(value: Value) -> bool:
    """Return whether a `Value` is in the weight file."""
    kind: str | None = value.WhichOneof("value")
    return kind == "blobFileValue"


def value_text(value: Value) -> str:
    """Return a `Value` as text; of a weight the type only, as its content is compared by digest."""
    kind = type_text(value.type)
    if is_weight(value):
        return f"weight {kind}"
    immediate = value.immediateValue
    field = immediate.tensor.WhichOneof("value")
    if immediate.WhichOneof("value") == "tensor" and field not in (None, "bytes"):
        items = getattr(immediate.tensor, field).values
        if len(items) <= _MAX_CONSTANT // 2:
            text = ", ".join(map(repr, items))
            if len(text) <= _MAX_CONSTANT:
                return f"{kind} {text}"
    return f"{kind} #{_digest(immediate)}"


def _digest(message: Message) -> str:
    content = message.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
