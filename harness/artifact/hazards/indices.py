"""Hazards of integers: quantities that pass through floats, and negative indices.

FLOAT32 holds every integer up to 2**24, FLOAT16 up to 2**11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from harness.artifact.hazards.graph import COPIES, Operation, Shape, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard

_EXACT = {"FLOAT16": 2**11, "FLOAT32": 2**24}
_ARITHMETIC = COPIES | {
    *("add", "sub", "mul", "real_div", "floor_div", "mod", "abs", "sign", "select", "clip"),
    *("log", "exp", "sqrt", "rsqrt", "sigmoid", "tanh", "inverse"),
    *("maximum", "minimum", "reduce_sum", "reduce_mean", "concat", "stack", "square", "pow"),
}
_TO_WHOLE = frozenset(("floor", "ceil", "round", "floor_div", "mod"))
_CASTS = frozenset(("cast",))
_LOOKUPS = ("gather", "gather_nd", "gather_along_axis")


@hazard("H05")
def integers_through_floats(function: Function) -> Iterator[Hazard]:
    """Find integers without a bound that are computed with as floats, and are integers after."""
    seen: set[Operation] = set()
    for cast in function.of_type("cast"):
        x, result = cast.operand("x"), cast.result
        if x is None or result is None or x.is_constant or not _is_integer(x):
            continue
        limit = _EXACT.get(result.dtype or "")
        if limit is None or function.bounds(x).largest <= limit:
            continue
        place = _integer_again(function, cast)
        if place is not None and place not in seen:
            seen.add(place)
            yield at(
                place,
                f"the integer '{x.name}' is computed with as {result.dtype}, which is exact up to "
                f"{limit} only",
            )


def _integer_again(function: Function, cast: Operation) -> Operation | None:
    """Return the first arithmetic on a cast integer if its result is an integer again, or None.

    So it is after `floor` or a cast to integers, and where an integer division is returned.
    """
    (x,) = [one.origin() for one in cast.operands["x"]]
    if x.producer is not None and x.producer.type in _TO_WHOLE and _is_returned(function, cast):
        return x.producer
    queue = deque((reader, reader) for reader in cast.results[0].readers)
    seen: set[Operation] = set()
    while queue:
        reader, first = queue.popleft()
        if reader in seen:
            continue
        seen.add(reader)
        is_cast = reader.type == "cast" and _is_integer(reader.result)
        if (reader.type in _TO_WHOLE or is_cast) and first.type not in COPIES:
            return first
        if reader.type in _ARITHMETIC and not is_cast:
            start = first if first.type not in COPIES else None
            queue.extend((after, start or after) for one in reader.results for after in one.readers)
    return None


def _is_returned(function: Function, cast: Operation) -> bool:
    """Return whether a float that a cast gives is an output of the function."""
    shaped = COPIES - _CASTS
    return any(one.origin(shaped) is cast.results[0] for one in function.outputs)


@hazard("H09")
def wrong_wrap(function: Function) -> Iterator[Hazard]:
    """Find negative indices that are wrapped by the size of a dimension that they do not index."""
    for lookup in function.of_type(*_LOOKUPS):
        x, indices = lookup.operand("x"), lookup.operand("indices")
        wrapped = None if indices is None else _wrapped(indices)
        if x is None or x.shape is None or indices is None or wrapped is None:
            continue
        source, added = wrapped
        wanted = _indexed(lookup, x.shape, indices)
        if function.bounds(source).low >= 0 or wanted is None:
            continue
        start, sizes = wanted
        found = _added_sizes(added, x.shape)
        if found is not None and len(found) in (1, len(sizes)):
            pairs = zip(found * len(sizes) if len(found) == 1 else found, sizes, strict=True)
            if any(None not in pair and pair[0] != pair[1] for pair in pairs):
                yield at(
                    lookup,
                    f"negative indices '{source.name}' are wrapped by {_text(found)}, but they "
                    f"index {_text(sizes)}, from dimension {start}",
                )
        elif (first := _first_dimension(added)) is not None and first != start:
            yield at(
                lookup,
                f"negative indices '{source.name}' are wrapped by the sizes from dimension "
                f"{first}, but they index those from dimension {start}",
            )


def _wrapped(indices: Value) -> tuple[Value, Value] | None:
    """Return the indices and what is added to negative ones, where a `select` wraps them."""
    choice = indices.origin(_CASTS).producer
    if choice is None or choice.type != "select":
        return None
    a, b, condition = (choice.operand(name) for name in ("a", "b", "cond"))
    test = condition.origin(_CASTS).producer if condition is not None else None
    if a is None or b is None or test is None:
        return None
    if test.type in ("less", "less_equal"):
        a, b = b, a
    elif test.type not in ("greater", "greater_equal"):
        return None
    total = b.origin(_CASTS).producer
    if total is None or total.type != "add":
        return None
    x, y = total.operand("x"), total.operand("y")
    if x is None or y is None:
        return None
    plain = a.origin(_CASTS)
    if x.origin(_CASTS) is plain:
        return plain, y
    return (plain, x) if y.origin(_CASTS) is plain else None


def _indexed(
    lookup: Operation, shape: Shape, indices: Value
) -> tuple[int, list[int | None]] | None:
    """Return the first dimension that indices choose from, and the sizes of all of them."""
    if lookup.type == "gather_nd":
        start, width = int(lookup.number("batch_dims", 0) or 0), 1
        if indices.shape is None or not indices.shape or indices.shape[-1] is None:
            return None
        width = indices.shape[-1]
    else:
        axis = lookup.number("axis", 0)
        if axis is None:
            return None
        start, width = int(axis) % max(1, len(shape)), 1
    sizes = list(shape[start : start + width])
    return (start, sizes) if sizes else None


def _added_sizes(added: Value, shape: Shape) -> list[int | None] | None:
    """Return constant sizes that are added to indices, None for computed ones."""
    array = added.origin().array
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(one) for one in array.reshape(-1)]


def _first_dimension(added: Value) -> int | None:
    """Return the first dimension of computed sizes, which are cut from a `shape` operation."""
    cut = added.origin().producer
    while cut is not None and cut.type in ("slice_by_size", "slice_by_index", "gather"):
        source = cut.operand("x")
        begin = cut.numbers("indices" if cut.type == "gather" else "begin")
        if source is None or not begin:
            return None
        if source.made_by("shape") is not None:
            return begin[0] if begin[0] >= 0 else None
        cut = source.origin().producer
    return 0 if cut is not None and cut.type == "shape" else None


def _is_integer(value: Value | None) -> bool:
    return value is not None and (value.dtype or "").startswith(("INT", "UINT"))


def _text(sizes: Sequence[int | None]) -> str:
    return str(["?" if one is None else one for one in sizes]).replace("'", "")
