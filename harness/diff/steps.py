"""Turns the operations of a function into steps that can be compared.

A step has a signature without names: the operation's type, the types of its inputs and outputs, and
its constants. Two functions whose values only have other names therefore give equal steps. A
constant is not a step; it belongs to the operations that use it.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from google.protobuf.message import Message

from harness.artifact.proto import declared_shape, mil_types

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Argument, Block, Function, Operation, Value, ValueType

_MAX_CONSTANT = 60  # characters of a constant's text; a longer one is shown by its digest
_MAX_TYPE = 200
_DIGITS = 8  # of a digest in hex: enough to distinguish two constants of one operation
RETURN = "return"  # the type of the last step, whose inputs are the function's outputs


class Parameter(NamedTuple):
    """A parameter of an operation as text, with the values and the weights that it takes.

    The parameter "" is what the blocks inside an operation compute.
    """

    name: str
    text: str
    values: tuple[str, ...]
    weights: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Step:
    """An operation; `outputs` are names of values, `types` their declared types.

    `number` counts the operations that were emitted before it, without constants.
    """

    type: str
    parameters: tuple[Parameter, ...]
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    number: int

    @cached_property
    def signature(self) -> str:
        """The operation without names."""
        named = ", ".join(f"{p.name}={p.text}" if p.name else p.text for p in self.parameters)
        types = f" -> {', '.join(self.types)}" if self.type != RETURN else ""
        return f"{self.type}({named}){types}"

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the values that it takes, in the order of the signature."""
        return tuple(name for parameter in self.parameters for name in parameter.values)

    @cached_property
    def weights(self) -> tuple[tuple[str, Value], ...]:
        """Name and `Value` of each weight that it takes from the weight file, in the same order."""
        return tuple(weight for parameter in self.parameters for weight in parameter.weights)

    @property
    def key(self) -> tuple[str, int, int, int]:
        """The properties that are equal for steps that correspond."""
        return self.signature, len(self.inputs), len(self.outputs), len(self.weights)

    @property
    def text(self) -> str:
        """The operation as one line."""
        return f"{', '.join(self.outputs)} = {self.signature}" if self.outputs else self.signature

    @property
    def place(self) -> str:
        """The operation's number and results."""
        return f"{self.number}: {', '.join(self.outputs) or self.type}"

    @property
    def keeps_order(self) -> bool:
        """Whether it reads or writes a state: its order among such operations matters."""
        return any("state " in parameter.text for parameter in self.parameters)


def steps(function: Function, block: Block) -> list[Step]:
    """Return the operations of a function's block, and a last step for its outputs."""
    reader = _Scope(ChainMap(), ChainMap())
    reader.types.update({value.name: type_text(value.type) for value in function.inputs})
    found = reader.operations(block)
    results = tuple(reader.parameter("", [name], name) for name in block.outputs)
    return [*found, Step(RETURN, results, (), (), len(found))]


def by_data_flow(found: Sequence[Step]) -> list[Step]:
    """Order steps: each after those whose values it takes, in the order in which it takes them.

    The order in which a converter emitted them does not count, save for operations that touch a
    state. Steps that no result needs come after the others, before the return.
    """
    makers = {name: step for step in found for name in step.outputs}
    before = dict(pairwise(step.number for step in found if step.keeps_order))
    previous = {after: found[number] for number, after in before.items()}
    ordered: dict[int, Step] = {}

    def needed(step: Step) -> Iterator[Step]:
        if step.number in previous:
            yield previous[step.number]
        yield from (makers[name] for name in step.inputs if name in makers)

    def visit(root: Step) -> None:
        waiting = [(root, needed(root))]
        entered = {root.number}
        while waiting:
            step, rest = waiting[-1]
            following = next(rest, None)
            if following is None:
                ordered[step.number] = step
                waiting.pop()
            elif following.number not in entered and following.number not in ordered:
                entered.add(following.number)
                waiting.append((following, needed(following)))

    *others, last = found
    visit(last)
    del ordered[last.number]
    for step in others:
        if step.number not in ordered:
            visit(step)
    return [*ordered.values(), last]


@dataclass
class _Taken:
    """Collects the values and weights that a parameter takes while it is read."""

    values: list[str] = field(default_factory=list)
    weights: list[tuple[str, Value]] = field(default_factory=list)

    def parameter(self, name: str, text: str) -> Parameter:
        return Parameter(name, text, tuple(self.values), tuple(self.weights))


class _Scope:
    """Reads operations in order, and keeps the types of variables and the constants so far."""

    def __init__(self, types: ChainMap[str, str], constants: ChainMap[str, Value]) -> None:
        self.types = types
        self.constants = constants

    def operations(self, block: Block) -> list[Step]:
        found: list[Step] = []
        for operation in block.operations:
            for output in operation.outputs:
                self.types[output.name] = type_text(output.type)
            if operation.type == "const" and operation.outputs and "val" in operation.attributes:
                self.constants[operation.outputs[0].name] = operation.attributes["val"]
            else:
                found.append(self._operation(operation, len(found)))
        return found

    def _operation(self, operation: Operation, number: int) -> Step:
        outputs = tuple(output.name for output in operation.outputs)
        name = outputs[0] if outputs else operation.type
        parameters = [
            self.parameter(parameter, argument.arguments, f"{name}.{parameter}")
            for parameter, argument in sorted(operation.inputs.items())
        ]
        for attribute, value in sorted(operation.attributes.items()):
            if attribute != "name":
                taken = _Taken()
                text = _constant(f"{name}.{attribute}", value, taken)
                parameters.append(taken.parameter(attribute, text))
        if operation.blocks:
            taken = _Taken()
            text = "".join(self._nested(block, taken) for block in operation.blocks)
            parameters.append(taken.parameter("", text))
        types = tuple(self.types[output] for output in outputs)
        return Step(operation.type, tuple(parameters), outputs, types, number)

    def parameter(
        self, name: str, bindings: Iterable[Argument.Binding | str], label: str
    ) -> Parameter:
        """Return a parameter; a binding is a name or a value in its place."""
        taken = _Taken()
        texts = [self._binding(label, binding, taken) for binding in bindings]
        return taken.parameter(name, " & ".join(texts))

    def _binding(self, label: str, binding: Argument.Binding | str, taken: _Taken) -> str:
        if isinstance(binding, str):
            return self.variable(binding, taken)
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
    text = ", ".join(_scalars(value))
    return f"{kind} {text}" if 0 < len(text) <= _MAX_CONSTANT else f"{kind} #{_digest(immediate)}"


def _scalars(value: Value) -> list[str]:
    """Return the scalars of a constant tensor as texts; none when they are packed or too many."""
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if value.immediateValue.WhichOneof("value") != "tensor" or field is None:
        return []
    if field != "bytes":
        items = getattr(tensor, field).values
        return [repr(item) for item in items] if len(items) <= _MAX_CONSTANT // 2 else []
    dtype, data = mil_types().get(value.type.tensorType.dataType), tensor.bytes.values
    if (
        dtype is None
        or dtype.bits < 8
        or len(data) > _MAX_CONSTANT
        or len(data) % (dtype.bits // 8)
    ):
        return []
    return [str(item) for item in np.frombuffer(data, dtype.numpy)]


def _digest(message: Message) -> str:
    content = message.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
