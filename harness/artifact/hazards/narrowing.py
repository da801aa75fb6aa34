"""Integers that lose their high bits: a cast of int32 data to 16 bits.

coremltools 9.0 casts the integer operands of five operations to 16 bits in fp16 models (its pass
`common::add_int16_cast`). It tests the range of constants and of some indices, never that of data:
token id 128255 becomes 62719 (coremltools 2222, 2626).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from harness.artifact.hazards.graph import COPIES, Graph, Operation, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard, readable
from harness.artifact.package import Package
from harness.errors import ArtifactError

_RANGES = {
    "BOOL": (0, 1),
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-(1 << 15), (1 << 15) - 1),
    "UINT16": (0, (1 << 16) - 1),
}
NARROW = ("INT16", "UINT16")
# Parameters that are positions along an axis of the operation's `x` or `data`, not data.
_INDICES = {
    "gather": "indices",
    "gather_along_axis": "indices",
    "gather_nd": "indices",
    "scatter": "indices",
    "scatter_along_axis": "indices",
    "scatter_nd": "indices",
    "slice_by_index": "begin end",
    "slice_by_size": "begin size",
    "slice_update": "begin end",
}
_ENDS = ("end", "size")
_ONE_AXIS = ("gather", "gather_along_axis", "scatter", "scatter_along_axis")
# Operations whose result holds elements of these operands and no others.
_MOVES = {
    **dict.fromkeys((*COPIES, "slice_by_index", "slice_by_size", "split"), ("x",)),
    **dict.fromkeys(("gather", "gather_along_axis", "gather_nd", "reduce_max"), ("x",)),
    **dict.fromkeys(("reduce_min", "sliding_windows"), ("x",)),
    **dict.fromkeys(("concat", "stack"), ("values",)),
    "select": ("a", "b"),
    "slice_update": ("x", "update"),
    "maximum": ("x", "y"),
    "minimum": ("x", "y"),
    "fill": ("value",),
    "read_state": ("input",),
}


_MAX_OPERANDS = 200  # of an operation that is looked into


class Range(NamedTuple):
    """The least and the greatest value; infinite where nothing bounds it."""

    low: float
    high: float

    def fits(self, dtype: str) -> bool:
        """Return whether a dtype holds all values of the range."""
        low, high = _RANGES[dtype]
        return low <= self.low and self.high <= high


class _Uses(NamedTuple):
    """The shortest and the longest axis on which a value is a position, wherever it is moved to.

    An `end` or a `size` may be the size itself, as a position of an axis longer by one.

    `longest` is infinite if something takes the value as data: an operation, or the caller.
    """

    shortest: float
    longest: float


_UNKNOWN = Range(-math.inf, math.inf)
_INT32 = Range(-(1 << 31), (1 << 31) - 1)
_DATA = _Uses(math.inf, math.inf)


class Ranges:
    """What is known of the integers of a function, from constants, axes and declared dtypes."""

    def __init__(self, graph: Graph) -> None:
        self._outputs = frozenset(graph.outputs)
        self._flexible = _largest_flexible_size(graph)
        self._known: dict[Value, Range] = {}
        self._uses: dict[Value, _Uses] = {}
        for operation in reversed(graph.operations):  # readers come after producers
            self._uses.update((result, self._ends(result)) for result in operation.results)
        self._uses.update((value, self._ends(value)) for value in graph.inputs)
        for value in graph.inputs:
            self._known[value] = self._used_as_index(value)
        for operation in graph.operations:  # producers come before readers
            for result in operation.results:
                self._known[result] = self._of(operation, result)

    def of(self, value: Value) -> Range:
        """Return the range of a value."""
        if value.is_constant:
            array = value.array
            if array is None or not array.size or array.dtype.kind not in "iub":
                return _dtype_range(value)
            return Range(int(array.min()), int(array.max()))
        return self._known.get(value, _dtype_range(value))

    def _of(self, operation: Operation, result: Value) -> Range:
        own = _dtype_range(result)
        if own != _UNKNOWN:
            return own
        found, used = self._computed(operation, result), self._used_as_index(result)
        if any(math.isfinite(end) and not _INT32.low <= end <= _INT32.high for end in found):
            found = _UNKNOWN  # it wraps around
        return Range(max(found.low, used.low), min(found.high, used.high))

    def _computed(self, operation: Operation, result: Value) -> Range:
        kind = operation.type
        if kind == "shape":
            return Range(0, self._longest(operation.operand("x")))
        if kind == "topk" and result is operation.result:
            return self._operand(operation, "x")
        if kind in ("reduce_argmax", "reduce_argmin", "argsort", "topk", "non_zero"):
            return Range(0, self._longest(operation.operand("x")) - 1)
        if kind == "range_1d":
            start, end = (self._operand(operation, name) for name in ("start", "end"))
            return Range(min(start.low, end.low), max(start.high, end.high))
        if kind == "one_hot":
            parts = [self._operand(operation, name) for name in ("on_value", "off_value")]
            return Range(min(p.low for p in parts), max(p.high for p in parts))
        if kind in _MOVES:
            moved = [v for name in _MOVES[kind] for v in operation.operands.get(name, ())]
            parts = [self.of(value) for value in moved]
            if not parts:
                return _UNKNOWN
            return Range(min(p.low for p in parts), max(p.high for p in parts))
        return self._arithmetic(operation)

    def _arithmetic(self, operation: Operation) -> Range:
        if operation.operand("x") is None or operation.operand("y") is None:
            return _UNKNOWN
        a, b = self._operand(operation, "x"), self._operand(operation, "y")
        match operation.type:
            case "add":
                return Range(a.low + b.low, a.high + b.high)
            case "sub":
                return Range(a.low - b.high, a.high - b.low)
            case "mul" if not any(map(math.isinf, (*a, *b))):
                corners = [x * y for x in a for y in b]
                return Range(min(corners), max(corners))
            case "floor_div" if b.low >= 1:
                return Range(min(a.low, 0), max(a.high, 0))
            case "mod" if b.low >= 1:
                return Range(0, b.high - 1)
        return _UNKNOWN

    def _operand(self, operation: Operation, name: str) -> Range:
        value = operation.operand(name)
        return _UNKNOWN if value is None else self.of(value)

    def _longest(self, value: Value | None) -> float:
        """Return the largest size that an axis of a value can have."""
        if value is None or value.shape is None:
            return self._flexible
        return max((self._flexible if n is None else n for n in value.shape), default=1)

    def _used_as_index(self, value: Value) -> Range:
        """Return the range that a value must have because something reads it as positions."""
        if value.dtype != "INT32":
            return _dtype_range(value)
        shortest = self._uses[value].shortest
        return Range(0, shortest - 1) if shortest < math.inf else _UNKNOWN

    def longest_axis(self, value: Value) -> float:
        """Return the longest axis on which a value is a position; infinite if it is also data."""
        return self._uses[value].longest

    def _ends(self, value: Value) -> _Uses:
        """Return how a value is used, from the uses of what its readers make of it."""
        shortest, longest = math.inf, math.inf if value in self._outputs else 0.0
        for reader in value.readers:
            roles = set[str]()
            if sum(map(len, reader.operands.values())) <= _MAX_OPERANDS:
                roles = {name for name, values in reader.operands.items() if value in values}
            if roles and roles.issubset(_INDICES.get(reader.type, "").split()):
                size = self._axis(reader)
                found = [_Uses(size + (role in _ENDS), size + (role in _ENDS)) for role in roles]
            elif roles and roles.issubset(_MOVES.get(reader.type, ())):
                found = [self._uses.get(result, _DATA) for result in reader.results]
            else:
                found = [_DATA]
            shortest = min([shortest, *(one.shortest for one in found)])
            longest = max([longest, *(one.longest for one in found)])
        return _Uses(shortest, longest)

    def _axis(self, operation: Operation) -> float:
        """Return the size of the longest axis that the operation's indices can point to."""
        table = operation.operand("x") or operation.operand("data")
        axis = operation.whole("axis", 0)
        shape = () if table is None or table.shape is None else table.shape
        if operation.type in _ONE_AXIS and axis is not None and -len(shape) <= axis < len(shape):
            size = shape[axis]
            return self._flexible if size is None else size
        return self._longest(table)


@hazard("H30")
def narrowed_data(graph: Function) -> Iterator[Hazard]:
    """Yield each cast of computed int32 data to 16 bits that can lose bits."""
    for _, found in _narrowing_casts(graph):
        yield found


def _narrowing_casts(graph: Function) -> Iterator[tuple[Operation, Hazard]]:
    ranges = Ranges(graph)
    named = set[Value]()  # what is made of integers that are named already
    for cast in graph.operations:
        source, result = cast.operand("x"), cast.result
        moved = [v for n in _MOVES.get(cast.type, ()) for v in cast.operands.get(n, ())]
        if not named.isdisjoint(moved):
            named.update(cast.results)
            continue
        if cast.type != "cast" or source is None or result is None or result.dtype not in NARROW:
            continue
        if source.is_constant or source.dtype != "INT32":
            continue
        known = ranges.of(source)
        low, high = _RANGES[result.dtype]
        if known.fits(result.dtype) or ranges.longest_axis(result) <= high + 1:
            continue
        named.add(result)
        integers = f"the integers '{source.origin().name}' {_reach(known)}"
        evidence = f"{integers}, and {result.dtype} has {low} to {high}"
        yield cast, at(cast, f"{evidence}: {_example(known, result.dtype)}")


def _reach(known: Range) -> str:
    if math.inf in (known.high, -known.low):
        return "have no known bounds"
    return f"are from {known.low:.0f} to {known.high:.0f}"


def check_ids(packages: Iterable[Package], vocabulary: int) -> str | None:
    """Return a warning if a model narrows integers, None if it does not, or all ids have 15 bits.

    Raises ArtifactError if what it narrows are ids, and ids of the vocabulary do not fit.
    """
    warning: str | None = None
    for package in packages if vocabulary > _RANGES["INT16"][1] + 1 else ():
        for name in sorted(package.functions):
            with readable(package, name):
                graph = Function(package, name)
                ids, casts = _ids(graph), list(_narrowing_casts(graph))
            for cast, found in casts:
                sentence = f"{package.what}, function '{name}', {found.place}: {found.evidence}"
                largest = min(_RANGES[one.dtype][1] for one in cast.results if one.dtype in _RANGES)
                if cast.operand("x") in ids and vocabulary > largest + 1:
                    raise ArtifactError(
                        f"{sentence}; token ids of this vocabulary of {vocabulary} cannot be "
                        "trusted: convert without the pass 'common::add_int16_cast'"
                    )
                warning = warning or sentence
    return warning


def _ids(graph: Graph) -> set[Value]:
    """Return the values that hold elements of an input of token ids, perhaps shifted.

    Token ids are integers [1, T]; positions have one axis, or their name says what they are.
    """
    found = {
        value
        for value in graph.inputs
        if value.is_integer and len(value.shape or ()) == 2 and "pos" not in value.name.lower()
    }
    for operation in graph.operations:
        names = ("x", "y") if operation.type in ("add", "sub") else _MOVES.get(operation.type, ())
        moved = (value for name in names for value in operation.operands.get(name, ()))
        if any(value in found for value in moved):
            found.update(operation.results)
    return found


def _example(known: Range, dtype: str) -> str:
    value = 128255 if known.high == math.inf else int(known.high)
    if value <= _RANGES[dtype][1]:
        value = int(max(known.low, -1 << 31))
    wrapped = value % (1 << 16)
    if dtype == "INT16" and wrapped > _RANGES[dtype][1]:
        wrapped -= 1 << 16
    return f"{value} becomes {wrapped}"


def _largest_flexible_size(graph: Graph) -> float:
    """Return the largest size that a description allows for any flexible axis."""
    largest = 0.0
    for feature in graph.package.described(graph.function).input:
        array = feature.type.multiArrayType
        for shape in array.enumeratedShapes.shapes:
            largest = max(largest, *shape.shape, 0)
        for one in array.shapeRange.sizeRanges:
            largest = max(largest, one.upperBound if one.upperBound > 0 else math.inf)
    return largest or math.inf


def _dtype_range(value: Value) -> Range:
    return Range(*_RANGES[value.dtype]) if value.dtype in _RANGES else _UNKNOWN
