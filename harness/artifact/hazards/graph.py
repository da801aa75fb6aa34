"""The operations of an ML Program's function as a graph, which the lints of hazards walk.

A value knows the operation that makes it and those that read it, its declared type, and its array
if it is constant. Nothing executes, and nothing is trusted: what cannot be read is None. Source:
coremltools' `MIL.proto`.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.artifact.operands import dtype_of
from harness.artifact.package import Package
from harness.artifact.proto import declared_shape, mil_types
from harness.errors import ArtifactError

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Argument, Block, NamedValueType, ValueType
    from coremltools.proto.MIL_pb2 import Operation as OperationMessage
    from coremltools.proto.MIL_pb2 import Value as ValueMessage

Shape = tuple[int | None, ...]
Array = NDArray[Any]
COPIES = frozenset(
    ("cast", "expand_dims", "identity", "reshape", "squeeze", "tile", "transpose", "reverse")
)
"""Operations whose result has the values of `x`, perhaps several times or in another order."""
_VARIADIC = frozenset(
    ("concat", "stack", "make_list", "cond", "while_loop", "einsum", "reshape_like", "classify")
)
_MAX_OPERANDS = 100  # of any other operation: `lstm` has 17
_MAX_NUMBERS = 100  # of a list of axes or sizes, and of a shape
_STATE_WRITES = ("write_state", "coreml_update_state")
_FIELDS = {
    "BOOL": "bools",
    "FLOAT32": "floats",
    "FLOAT64": "doubles",
    "INT32": "ints",
    "INT16": "ints",
    "UINT16": "ints",
    "INT64": "longInts",
    "STRING": "strings",
}
"""The field that holds immediate values of a dtype; all others are bytes."""


@dataclass(eq=False)
class Value:
    """A value of a function: an input, a result or a constant.

    `dtype` is None unless it is a tensor. None in `shape` marks a flexible dimension; the shape is
    None when the rank is unknown. `producer` is None for an input and an inline constant.
    """

    name: str
    dtype: str | None
    shape: Shape | None
    producer: Operation | None = None
    readers: list[Operation] = field(default_factory=list)
    literal: tuple[Package, ValueMessage] | None = field(default=None, repr=False)
    _origins: dict[frozenset[str], Value] = field(default_factory=dict, repr=False)
    _multiple: tuple[Value, float] | None = field(default=None, repr=False)

    @property
    def is_float(self) -> bool:
        """Whether its elements are floats."""
        return (self.dtype or "").startswith("FLOAT")

    @property
    def is_integer(self) -> bool:
        """Whether its elements are integers, signed or not."""
        return (self.dtype or "").startswith(("INT", "UINT"))

    @property
    def is_constant(self) -> bool:
        """Whether the program holds its value, or that of what it is computed from."""
        if self.literal is not None:
            return True
        maker = self.producer
        return maker is not None and maker.type.startswith("constexpr_")

    @cached_property
    def array(self) -> Array | None:
        """The value of a constant, None for any other value and for one that cannot be read."""
        if self.literal is None:
            return None
        try:
            return _array(*self.literal)
        except (ArtifactError, ValueError, TypeError, OverflowError):
            return None

    @property
    def number(self) -> float | None:
        """The value of a constant of one element, None for any other value."""
        array = self.array
        if array is None or array.size != 1 or array.dtype.kind not in "fiub":
            return None
        return float(array.reshape(())[()])

    @property
    def numbers(self) -> list[int] | None:
        """The value of a constant list of axes, sizes or flags, None for any other value."""
        array = self.array
        if array is None or array.size > _MAX_NUMBERS or array.dtype.kind not in "iub":
            return None
        return [int(one) for one in array.reshape(-1)]

    @property
    def count(self) -> int | None:
        """The number of elements, None when a dimension is flexible."""
        if self.shape is None or None in self.shape:
            return None
        return math.prod(size or 0 for size in self.shape)

    def origin(self, through: frozenset[str] = COPIES) -> Value:
        """Return the value that this one is a copy of, through casts and changes of shape."""
        value, copies = self, list[Value]()
        while through not in value._origins:
            copies.append(value)
            maker = value.producer
            source = maker.operand("x") if maker is not None and maker.type in through else None
            if source is None:
                break
            value = source
        found = value._origins.get(through, value)
        for copy in copies:  # so that no part of a chain is walked again
            copy._origins[through] = found
        return found

    def multiple(self) -> tuple[Value, float]:
        """Return the value that this one is a constant multiple of, and the factor."""
        value, products = self.origin(), list[tuple[Value, float]]()
        while value._multiple is None:
            scaled = None if value.producer is None else value.producer.scaled
            if scaled is None:
                value._multiple = value, 1.0
            else:
                products.append((value, scaled[1]))
                value = scaled[0].origin()
        found, factor = value._multiple
        for product, number in reversed(products):
            factor *= number
            product._multiple = found, factor
        return found, factor

    def made_by(self, *types: str) -> Operation | None:
        """Return the operation that makes the value's origin if it is one of these types."""
        maker = self.origin().producer
        return maker if maker is not None and maker.type in types else None


@dataclass(eq=False)
class Operation:
    """An operation, unless it is a constant: its operands by parameter, and its results."""

    type: str
    operands: Mapping[str, tuple[Value, ...]]
    results: tuple[Value, ...]

    @property
    def place(self) -> str:
        """Its type and its first result: "log 'scores'"."""
        return f"{self.type} '{self.results[0].name}'" if self.results else self.type

    @property
    def result(self) -> Value | None:
        """Its first result."""
        return self.results[0] if self.results else None

    @property
    def scaled(self) -> tuple[Value, float] | None:
        """The value that a `mul` scales and the constant factor, None for another operation."""
        x, y = self.operand("x"), self.operand("y")
        if self.type != "mul" or x is None or y is None or (x.number is None) == (y.number is None):
            return None
        return (y, x.number or 0.0) if y.number is None else (x, y.number)

    def operand(self, name: str) -> Value | None:
        """Return the only operand of a parameter, None when there is none or there are several."""
        found = self.operands.get(name, ())
        return found[0] if len(found) == 1 else None

    def number(self, name: str, default: float | None = None) -> float | None:
        """Return a parameter that is a constant number, `default` when it is not given."""
        value = self.operand(name)
        return default if value is None else value.number

    def whole(self, name: str, default: float) -> int | None:
        """Return a parameter that is a constant integer, `default` when it is not given."""
        number = self.number(name, default)
        return int(number) if number is not None and float(number).is_integer() else None

    def numbers(self, name: str) -> list[int] | None:
        """Return a parameter that is a constant list of integers or bools."""
        value = self.operand(name)
        return None if value is None else value.numbers

    def all_operands(self) -> Iterator[Value]:
        """Yield every operand."""
        for values in self.operands.values():
            yield from values


class Graph:
    """A function of a package.

    `operations` are those of all blocks, in their order, without constants; `constants` the values
    of all `const` operations. `inputs` include states. A value of an inner block's own inputs has
    no producer. Raises ArtifactError when the package has no such function.
    """

    def __init__(self, package: Package, function: str) -> None:
        self.package, self.function = package, function
        self.operations: list[Operation] = []
        self.constants: list[Value] = []
        block = package.operations(function)
        self.states = frozenset(package.states(function))
        known: dict[str, Value] = {}
        for value in package.functions[function].inputs:
            known[value.name] = _value(value)
        self.inputs = tuple(known.values())
        self.outputs = tuple(self._block(block, ChainMap(known)))

    def of_type(self, *types: str) -> Iterator[Operation]:
        """Yield the operations of these types."""
        yield from (one for one in self.operations if one.type in types)

    @cached_property
    def from_inputs(self) -> frozenset[Value]:
        """The values that depend on an input or a state."""
        found = set(self.inputs)
        for operation in self.operations:
            is_random = operation.type.startswith("random_")
            if is_random or any(value in found for value in operation.all_operands()):
                found.update(operation.results)
        return frozenset(found)

    @cached_property
    def needed(self) -> frozenset[Value]:
        """The values that an output or a state is computed from."""
        found: set[Value] = set()
        queue = list(self.outputs)
        for operation in self.operations:
            if operation.type in _STATE_WRITES:
                queue += operation.all_operands()
        while queue:
            value = queue.pop()
            if value in found:
                continue
            found.add(value)
            if value.producer is not None:
                queue += value.producer.all_operands()
        return frozenset(found)

    def _block(self, block: Block, outer: ChainMap[str, Value]) -> list[Value]:
        """Add a block's operations; return its outputs."""
        known = outer.new_child({value.name: _value(value) for value in block.inputs})
        for message in block.operations:
            results = tuple(_value(output) for output in message.outputs)
            if message.type == "const":
                for result in results[:1]:
                    if "val" in message.attributes:
                        result.literal = (self.package, message.attributes["val"])
                    self.constants.append(result)
            else:
                self._operation(message, results, known)
            known.update((result.name, result) for result in results)
        return [known[name] for name in block.outputs if name in known]

    def _operation(
        self, message: OperationMessage, results: tuple[Value, ...], known: ChainMap[str, Value]
    ) -> None:
        operands = {
            name: tuple(self._operands(argument, known))
            for name, argument in message.inputs.items()
        }
        for name, value in message.attributes.items():
            if name != "name":
                operands.setdefault(name, (self._inline(value),))
        inner = [self._block(block, known) for block in message.blocks]
        for number, outputs in enumerate(inner):
            operands[f"block{number}"] = tuple(outputs)
        operation = Operation(message.type, operands, results)
        count = sum(map(len, operands.values()))
        if count > _MAX_OPERANDS and operation.type not in _VARIADIC:
            raise ArtifactError(
                f"{self.package.what}, function '{self.function}', {operation.place}: it has "
                f"{count} operands, more than any operation of its type; convert the model again"
            )
        for result in results:
            result.producer = operation
        for operand in dict.fromkeys(operation.all_operands()):
            operand.readers.append(operation)
        self.operations.append(operation)

    def _operands(self, argument: Argument, known: Mapping[str, Value]) -> Iterator[Value]:
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                yield self._inline(binding.value)
            elif binding.name in known:
                yield known[binding.name]

    def _inline(self, message: ValueMessage) -> Value:
        return Value("", *_declared(message.type), literal=(self.package, message))


def _value(message: NamedValueType) -> Value:
    return Value(message.name, *_declared(message.type))


def _declared(message: ValueType) -> tuple[str | None, Shape | None]:
    """Return dtype and shape of a tensor or of the tensor in a state."""
    if message.WhichOneof("type") == "stateType":
        message = message.stateType.wrappedType
    dtype = dtype_of(message)
    if dtype is None:
        return None, None
    tensor = message.tensorType
    shape = declared_shape(tensor)
    is_known = not any(d.unknown.variadic for d in tensor.dimensions)
    return dtype, shape if is_known and tensor.rank == len(shape) <= _MAX_NUMBERS else None


def _array(package: Package, message: ValueMessage) -> Array | None:
    """Return a constant tensor; one in the weight file is a view of it."""
    kind = mil_types().get(message.type.tensorType.dataType)
    if message.type.WhichOneof("type") != "tensorType" or kind is None or 0 < kind.bits < 8:
        return None
    shape = [size or 0 for size in declared_shape(message.type.tensorType)]
    if message.WhichOneof("value") == "blobFileValue":
        reference = message.blobFileValue
        blob = package.blob(reference.fileName, reference.offset)
        return np.frombuffer(blob.data, kind.numpy).reshape(shape)
    tensor = message.immediateValue.tensor
    stored = tensor.WhichOneof("value")
    if stored is None:
        return None
    if stored == "bytes":
        return np.frombuffer(tensor.bytes.values, kind.numpy).reshape(shape)
    values = list(getattr(tensor, _FIELDS.get(kind.name, "ints")).values)
    dtype = object if kind.name == "STRING" else np.dtype(kind.numpy)
    return np.array(values, dtype).reshape(shape)
