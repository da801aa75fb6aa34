"""Integers that lose their high bits: a cast of int32 data to 16 bits.

coremltools 9.0 casts the integer operands of five operations to 16 bits in fp16 models (its pass
`common::add_int16_cast`). It tests the range of constants and of some indices, never that of data:
token id 128255 becomes 62719 (coremltools 2222, 2626).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from harness.artifact.hazards.bounds import LIMITS, UNKNOWN, Bounds, Known, as_declared, hull
from harness.artifact.hazards.graph import COPIES, Graph, Operation, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard, readable
from harness.artifact.hazards.ranges import bounds_of_results
from harness.artifact.package import Package
from harness.errors import ArtifactError

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
_NARROW = ("INT16", "UINT16")
_ENDS = ("end", "size")
_ONE_AXIS = ("gather", "gather_along_axis", "scatter", "scatter_along_axis")
# Operations whose result holds elements of these operands and no others; bounds: `ranges.py`.
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


class _Uses(NamedTuple):
    """The shortest and the longest axis on which a value is a position, wherever it is moved to.

    An `end` or a `size` may be the size itself, as a position of an axis longer by one.

    `longest` is infinite if something takes the value as data: an operation, or the caller.
    """

    shortest: float
    longest: float

    @classmethod
    def of(cls, uses: Iterable[_Uses]) -> _Uses:
        """Return all of these uses as one."""
        found = list(uses)
        return cls(
            min((one.shortest for one in found), default=math.inf),
            max((one.longest for one in found), default=0),
        )


_UNUSED = _Uses(math.inf, 0)
_DATA = _Uses(math.inf, math.inf)


class Ranges:
    """The bounds of a function's integers, which its axes and uses as positions narrow."""

    def __init__(self, graph: Graph) -> None:
        self._flexible = _largest_flexible_size(graph)
        self._uses: dict[Value, _Uses] = dict.fromkeys(graph.outputs, _DATA)
        for operation in reversed(graph.operations):  # readers come after producers
            self._add_uses(operation)
        self._known = Known()
        self._known.update((value, self._in_axis(value, self.of(value))) for value in graph.inputs)
        for operation in graph.operations:  # producers come before readers
            found = self._computed(operation)
            for result in operation.results:
                own = as_declared(result, found)
                if operation.type == "topk" and result is operation.result:
                    own = as_declared(result, self._operand(operation, "x"))
                self._known[result] = self._in_axis(result, own)

    def of(self, value: Value) -> Bounds:
        """Return the bounds of a value."""
        return self._known[value]

    def longest_axis(self, value: Value) -> float:
        """Return the longest axis on which a value is a position; infinite if it is also data."""
        return self._uses.get(value, _UNUSED).longest

    def _computed(self, operation: Operation) -> Bounds:
        match operation.type:
            case "shape":
                return Bounds(0, self._longest(operation.operand("x")))
            case "reduce_argmax" | "reduce_argmin" | "argsort" | "topk" | "non_zero":
                return Bounds(0, self._longest(operation.operand("x")) - 1)
            case "range_1d":
                return hull(self._operand(operation, name) for name in ("start", "end"))
        return bounds_of_results(operation, self._known)

    def _operand(self, operation: Operation, name: str) -> Bounds:
        value = operation.operand(name)
        return UNKNOWN if value is None else self.of(value)

    def _longest(self, value: Value | None) -> float:
        """Return the largest size that an axis of a value can have."""
        if value is None or value.shape is None:
            return self._flexible
        return max((self._flexible if n is None else n for n in value.shape), default=1)

    def _in_axis(self, value: Value, found: Bounds) -> Bounds:
        """Return the bounds of a value that may have to be a position on an axis."""
        shortest = self._uses.get(value, _UNUSED).shortest
        low, high = max(found.low, 0.0), min(found.high, shortest - 1)
        if value.dtype != "INT32" or math.isinf(shortest) or low > high:
            return found
        return replace(found, low=low, high=high)

    def _add_uses(self, operation: Operation) -> None:
        """Add how an operation uses its operands; all uses of its results are known."""
        roles = defaultdict[Value, set[str]](set)
        for name, values in operation.operands.items():
            for value in values:
                roles[value].add(name)
        moved = _Uses.of(self._uses.get(result, _UNUSED) for result in operation.results)
        for value, names in roles.items():
            if names.issubset(_INDICES.get(operation.type, "").split()):
                sizes = [self._axis(operation) + (name in _ENDS) for name in names]
                found = _Uses(min(sizes), max(sizes))
            else:
                found = moved if names.issubset(_MOVES.get(operation.type, ())) else _DATA
            self._uses[value] = _Uses.of((self._uses.get(value, _UNUSED), found))

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
        if cast.type != "cast" or source is None or result is None or result.dtype not in _NARROW:
            continue
        if source.is_constant or source.dtype != "INT32":
            continue
        known = ranges.of(source)
        low, high = LIMITS[result.dtype]
        fits = low <= known.low and known.high <= high
        if fits or ranges.longest_axis(result) <= high + 1:
            continue
        named.add(result)
        integers = f"the integers '{source.origin().name}' {_reach(known)}"
        evidence = f"{integers}, and {result.dtype} has {low} to {high}"
        yield cast, at(cast, f"{evidence}: {_example(known, result.dtype)}")


def _reach(known: Bounds) -> str:
    if math.inf in (known.high, -known.low):
        return "have no known bounds"
    return f"are from {known.low:.0f} to {known.high:.0f}"


def check_ids(packages: Iterable[Package], vocabulary: int) -> str | None:
    """Return a warning if a model narrows integers, None if it does not, or all ids have 15 bits.

    Raises ArtifactError if what it narrows are ids, and ids of the vocabulary do not fit.
    """
    warning: str | None = None
    for package in packages if vocabulary > LIMITS["INT16"][1] + 1 else ():
        for name in sorted(package.functions):
            with readable(package, name):
                graph = Function(package, name)
                ids, casts = _ids(graph), list(_narrowing_casts(graph))
            for cast, found in casts:
                sentence = f"{package.what}, function '{name}', {found.place}: {found.evidence}"
                largest = min(LIMITS[one.dtype][1] for one in cast.results if one.dtype in LIMITS)
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


def _example(known: Bounds, dtype: str) -> str:
    value = 128255 if known.high == math.inf else int(known.high)
    if value <= LIMITS[dtype][1]:
        value = int(max(known.low, -1 << 31))
    wrapped = value % (1 << 16)
    if dtype == "INT16" and wrapped > LIMITS[dtype][1]:
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
