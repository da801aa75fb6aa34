"""The types in an ML Program: operands of operations, results, constants, and inputs nobody reads.

Nothing executes here. Sources: coremltools' `MIL.proto` for names, ranks and constants, its classes
of operations for dtypes (`operands.toml`).
"""

from __future__ import annotations

import re
import tomllib
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from harness.artifact.package import Package
from harness.artifact.proto import declared_shape, feature_types, mil_types

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Argument, Block, Operation, Value, ValueType

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_@]*")
_SHORT = {"fp16": "FLOAT16", "fp32": "FLOAT32", "fp64": "FLOAT64"}
_LARGEST_INDEX = {"INT8": 127, "UINT8": 255, "INT16": 32767, "UINT16": 65535}
_ALL_RESULTS = frozenset({"gru", "lstm", "rnn", "split"})  # others only have the first one's rule
MIN_FILE_ELEMENTS = 10
"""coremltools writes a constant of this many elements into the weight file."""
_FILE_TYPES = ("FLOAT16", "FLOAT32", "INT8", "UINT8")
_FILE_TYPES_SINCE_18 = (*_FILE_TYPES, "INT16", "UINT16", "INT32", "UINT32")


@dataclass(frozen=True)
class Signature:
    """The dtypes that an operation takes in an opset, by parameter.

    Parameters of one `group` have one dtype. `result` names the parameter whose dtype the result
    has, a dtype, or `@` and the string parameter that names it.
    """

    allowed: Mapping[str, frozenset[str]]
    groups: Mapping[str, str]
    result: str | None


def signature(operation: str, opset: str) -> Signature | None:
    """Return an operation's signature in an opset, None when the table does not have it."""
    row = _table().get(operation, {})
    earlier = [known for known in row if known.startswith("CoreML") and known <= opset]
    if not row or (not earlier and "result" not in row):
        return None
    return _parse(row[max(earlier)] if earlier else "", row.get("result"))


@cache
def _table() -> dict[str, dict[str, str]]:
    text = (files("harness.artifact") / "operands.toml").read_text("utf-8")
    table: dict[str, dict[str, str]] = tomllib.loads(text)
    return table


@cache
def _parse(text: str, result: str | None) -> Signature:
    words = text.split()
    sets = dict(word.split("=") for word in words if "=" in word)
    groups = dict(word.split(":") for word in words if ":" in word)
    allowed = {name: _dtypes(sets.get(kind, kind)) for name, kind in groups.items()}
    return Signature(allowed, {n: k for n, k in groups.items() if k in sets}, result)


def _dtypes(text: str) -> frozenset[str]:
    return frozenset(mil_name(name) for name in text.split("|"))


def mil_name(name: str) -> str:
    """Return MIL's name of a dtype that coremltools writes as `fp16` or `int32`."""
    return _SHORT.get(name, name.upper())


def dtype_of(message: ValueType) -> str | None:
    """Return the dtype of a tensor type, None for a list, a state, a dictionary or nothing."""
    if message.WhichOneof("type") != "tensorType":
        return None
    known = mil_types().get(message.tensorType.dataType)
    return known.name if known else None


class FunctionTypes:
    """Follows the dtypes through a function.

    After a result with a wrong declaration, it goes on with the right dtype, so that one mistake
    gives one problem. `wide` are the FLOAT32 results that should be FLOAT16.
    """

    def __init__(self, package: Package, function: str) -> None:
        self._package, self._function = package, function
        self._opset = package.functions[function].opset
        self._block = package.operations(function)
        self.operations = 0
        self.wide: list[str] = []
        self._read: set[str] = set()
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        self._numbers: dict[str, list[int]] = {}  # of constants, by name

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the place and the description of each problem, in the order of operations."""
        inputs = self._package.functions[self._function].inputs
        if not _IDENTIFIER.fullmatch(self._function):
            yield "its name", _not_identifier(self._function)
        known: dict[str, str | None] = {}
        described_as = self._described_dtypes()
        for value in inputs:
            yield from self._declared(value.name, value.type, f"input '{value.name}'")
            dtype = dtype_of(value.type)
            agreed = described_as.get(value.name, dtype) == dtype  # `descriptions` says if not
            known[value.name] = dtype if agreed else None
        yield from self._in_block(self._block, ChainMap(known))

    def _described_dtypes(self) -> dict[str, str]:
        """Return the dtypes of arrays in the function's description, by name."""
        features = self._package.described(self._function).input
        return {
            feature.name: feature_types().get(feature.type.multiArrayType.dataType, "").upper()
            for feature in features
            if feature.type.WhichOneof("Type") == "multiArrayType"
        }

    def unread_inputs(self) -> list[str]:
        """Return the inputs that no operation reads and that are not outputs; call it last."""
        read = self._read | set(self._block.outputs)
        names = [value.name for value in self._package.functions[self._function].inputs]
        return [name for name in names if name not in read]

    def _in_block(
        self, block: Block, outer: ChainMap[str, str | None]
    ) -> Iterator[tuple[str, str]]:
        known = outer.new_child({value.name: dtype_of(value.type) for value in block.inputs})
        for operation in block.operations:
            self.operations += 1
            name = operation.outputs[0].name if operation.outputs else "without result"
            where = f"{operation.type} '{name}'"
            if operation.type == "const":
                problems = self._constant(operation)
            else:
                problems = self._operation(operation, known)
            yield from ((where, problem) for problem in problems)
            for output in operation.outputs:
                yield from self._declared(output.name, output.type, where)
                known.setdefault(output.name, dtype_of(output.type))
            for inner in operation.blocks:
                yield from self._in_block(inner, known)
        self._read |= set(block.outputs)

    def _declared(self, name: str, message: ValueType, where: str) -> Iterator[tuple[str, str]]:
        if not _IDENTIFIER.fullmatch(name):
            yield where, _not_identifier(name)
        if message.WhichOneof("type") != "tensorType":
            return
        tensor = message.tensorType
        self._shapes[name] = declared_shape(tensor)
        if tensor.rank not in (len(tensor.dimensions), -1):
            yield where, f"'{name}' has rank {tensor.rank} and {len(tensor.dimensions)} dimensions"

    def _constant(self, operation: Operation) -> Iterator[str]:
        if "val" not in operation.attributes or not operation.outputs:
            return  # nothing can be read from it: loading says so
        value = operation.attributes["val"]
        declared, held = _text(operation.outputs[0].type), _text(value.type)
        if declared != held:
            yield f"declares {declared}, but its value is {held}"
        name = operation.outputs[0].name
        self._numbers[name] = list(value.immediateValue.tensor.ints.values)

    def _operation(
        self, operation: Operation, known: MutableMapping[str, str | None]
    ) -> Iterator[str]:
        operands = {n: self._operands(a, known) for n, a in operation.inputs.items()}
        for name, value in operation.attributes.items():
            if name != "name":
                operands[name] = [dtype_of(value.type)]
        rule = signature(operation.type, self._opset)
        if rule is None:
            return
        yield from _wrong_operands(operands, rule, self._opset)
        if operation.type == "gather":
            yield from self._narrow_indices(operation, operands)
        expected = self._result(operation, operands, rule)
        if expected is None:
            return
        results = operation.outputs if operation.type in _ALL_RESULTS else operation.outputs[:1]
        for output in results:
            declared = dtype_of(output.type)
            if declared is None or declared == expected:
                continue
            known[output.name] = expected
            if (declared, expected) == ("FLOAT32", "FLOAT16"):
                self.wide.append(output.name)
            else:
                yield f"declares '{output.name}' {declared}, but it gives {expected}"

    def _narrow_indices(
        self, operation: Operation, operands: Mapping[str, list[str | None]]
    ) -> Iterator[str]:
        """Yield a computed index whose dtype cannot name every entry of the table."""
        names = {n: a.arguments[0].name for n, a in operation.inputs.items() if a.arguments}
        limit = _LARGEST_INDEX.get((operands.get("indices") or [None])[0] or "")
        computed = names.get("indices", "")
        if limit is None or not computed or computed in self._numbers:
            return
        axis = self._numbers.get(names.get("axis", ""), [0])
        shape = self._shapes.get(names.get("x", ""), ())
        size = shape[axis[0]] if len(axis) == 1 and -len(shape) <= axis[0] < len(shape) else None
        if size is not None and size - 1 > limit:
            yield f"its indices reach {limit}, but axis {axis[0]} of its table has {size} entries"

    def _operands(self, argument: Argument, known: Mapping[str, str | None]) -> list[str | None]:
        found = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                found.append(dtype_of(binding.value.type))
            else:
                self._read.add(binding.name)
                found.append(known.get(binding.name))
        return found

    def _result(
        self, operation: Operation, operands: Mapping[str, list[str | None]], rule: Signature
    ) -> str | None:
        if rule.result is None or not operation.outputs:
            return None
        if rule.result.startswith("@"):
            name = self._text_parameter(operation, rule.result[1:])
            return mil_name(name or "int32") if name != "" else None
        if rule.result in operands:
            return operands[rule.result][0] if operands[rule.result] else None
        return mil_name(rule.result) if rule.result in ("bool", "int32") else None

    def _text_parameter(self, operation: Operation, name: str) -> str | None:
        """Return a string parameter, None when it is not given, "" when it cannot be found."""
        if name in operation.attributes:
            return _string(operation.attributes[name])
        if name not in operation.inputs or not operation.inputs[name].arguments:
            return None
        binding = operation.inputs[name].arguments[0]
        if binding.WhichOneof("binding") == "value":
            return _string(binding.value)
        return self._strings().get(binding.name, "")

    def _strings(self) -> Mapping[str, str]:
        """Return the constant strings of all blocks by name."""
        if not hasattr(self, "_found_strings"):
            self._found_strings = dict(_string_constants(self._block))
        return self._found_strings


def weights_in_program(package: Package, function: str) -> Iterator[tuple[str, Value, int]]:
    """Yield each constant in a function that coremltools would write into the weight file.

    It has a name, its value, and its size in bytes.
    """
    late = package.model.specificationVersion >= 9
    allowed = _FILE_TYPES_SINCE_18 if late else _FILE_TYPES
    for name, value in _values(package.operations(function)):
        dtype = dtype_of(value.type)
        if value.WhichOneof("value") == "immediateValue" and dtype in allowed:
            count = 1
            for size in declared_shape(value.type.tensorType):
                count *= size or 0
            if count >= MIN_FILE_ELEMENTS:
                yield name, value, count * mil_types()[value.type.tensorType.dataType].bits // 8


def _values(block: Block) -> Iterator[tuple[str, Value]]:
    """Yield the constants and the bound values of all operations, with names."""
    for operation in block.operations:
        result = operation.outputs[0].name if operation.outputs else operation.type
        for name, value in operation.attributes.items():
            yield result if operation.type == "const" else f"{name} of {result}", value
        for name, argument in operation.inputs.items():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "value":
                    yield f"{name} of {result}", binding.value
        for inner in operation.blocks:
            yield from _values(inner)


def _wrong_operands(
    operands: Mapping[str, list[str | None]], rule: Signature, opset: str
) -> Iterator[str]:
    """Yield the operands of a dtype that the opset does not allow, and those that disagree."""
    firsts: dict[str, tuple[str, str]] = {}
    for name in rule.allowed:  # in the order of the operation's parameters
        for dtype in operands.get(name, ()):
            if dtype is None:
                continue
            if dtype not in rule.allowed[name]:
                allowed = ", ".join(sorted(rule.allowed[name]))
                yield f"'{name}' is {dtype}; opset {opset} allows {allowed}"
            elif group := rule.groups.get(name):
                first, wanted = firsts.setdefault(group, (name, dtype))
                if dtype != wanted:
                    yield f"'{name}' is {dtype}, but '{first}' is {wanted}; both must be the same"


def _string_constants(block: Block) -> Iterator[tuple[str, str]]:
    for operation in block.operations:
        if operation.type == "const" and operation.outputs and "val" in operation.attributes:
            yield operation.outputs[0].name, _string(operation.attributes["val"])
        for inner in operation.blocks:
            yield from _string_constants(inner)


def _string(value: Value) -> str:
    values = value.immediateValue.tensor.strings.values
    return values[0] if len(values) == 1 else ""


def _not_identifier(name: str) -> str:
    return f"the name {name[:80]!r} is not an identifier of letters, digits, '_' and '@'"


def _text(message: ValueType) -> str:
    """Return a tensor type in MIL's words, "" for another type."""
    dtype = dtype_of(message)
    if dtype is None:
        return ""
    return f"{dtype}{shape_text(declared_shape(message.tensorType))}"


def shape_text(shape: Iterable[int | None]) -> str:
    """Return a shape as text; `?` is a flexible size."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
