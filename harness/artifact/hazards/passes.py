"""Hazards of a converter's passes: what they fold, leave out, rewrite or compute as floats.

What a pass has done shows in names: coremltools names a constant that a pass makes after the result
and the parameter (`scores_bias_0`), and a result that replaces another after the replaced one.
FLOAT32 holds every integer up to 2**24, FLOAT16 up to 2**11.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence

from harness.artifact.hazards.graph import COPIES, Operation, Shape, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard

_BROADCASTING = frozenset(
    (
        *("add", "sub", "mul", "real_div", "floor_div", "maximum", "minimum", "mod", "pow"),
        *("select", "equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
        *("logical_and", "logical_or", "logical_xor", "scaled_dot_product_attention"),
    )
)
_PRECISIONS = re.compile(r"_(to|cast|type)_(fp16|fp32)")
_ADDITION = re.compile(r"(^|_)add(_|\d|$)")
_OF_LINEAR = re.compile(r"linear_\d+")


@hazard("H01")
def subtraction_in_linear(function: Function) -> Iterator[Hazard]:
    """Find linears that a pass made of `matmul` and `add` or `sub`, where it may be wrong.

    The pass negates the bias although the product is subtracted, and takes the bias of a
    transposed product for one along the rows. It leaves a bias that is named after the result, and
    a weight that is not.
    """
    for operation in function.of_type("linear") if function.version is not None else ():
        x, weight, bias, result = (
            *(operation.operand(name) for name in ("x", "weight", "bias")),
            operation.result,
        )
        if x is None or weight is None or bias is None or result is None or bias.array is None:
            continue
        name = _PRECISIONS.sub("", result.name)
        if _PRECISIONS.sub("", bias.name) != f"{name}_bias_0" or function.bounds(bias).largest == 0:
            continue
        if _PRECISIONS.sub("", weight.name).startswith(f"{name}_weight"):
            continue
        turned = [one for one in (x.producer, *result.readers) if one is not None]
        if _OF_LINEAR.fullmatch(name):
            if any(one.type == "transpose" for one in turned):
                yield at(operation, f"its bias '{bias.name}' was added to the transposed result")
        elif not _ADDITION.search(name):
            yield at(operation, f"'{result.name}' may be its negative: constant - product")


@hazard("H13")
def shared_slice_bounds(function: Function) -> Iterator[Hazard]:
    """Find slices of inputs of unequal size that share a constant `begin` or `end`.

    A negative entry is rewritten for the first of them. Equal constants of several slices are
    shared by a later pass, which is sound; these are named after their parameter.
    """
    for constant in function.constants if function.version is not None else ():
        for name in ("begin", "end"):
            slices = [
                one
                for one in constant.readers
                if one.type == "slice_by_index" and one.operand(name) is constant
            ]
            if re.search(rf"_{name}_\d+(_to_u?int16)?$", constant.name) or len(slices) < 2:
                continue
            for later in slices[1:]:
                axis = _unequal_axis(slices[0], later, name)
                if axis is not None:
                    yield at(
                        later,
                        f"it shares '{constant.name}' with {slices[0].place}, whose operand has "
                        f"another size along axis {axis}",
                    )


def _unequal_axis(first: Operation, later: Operation, name: str) -> int | None:
    """Return the axis along which a shared bound gives results of unequal sizes, or None."""
    values = first.numbers(name) or []
    masked = [set(_true(one.numbers(f"{name}_mask"))) for one in (first, later)]
    shapes = [_shape(one.operand("x")) for one in (first, later)]
    for axis, value in enumerate(values):
        sizes = [shape[axis] if axis < len(shape) else None for shape in shapes]
        is_read = value > 0 and axis not in masked[0] | masked[1]
        if is_read and None not in sizes and sizes[0] != sizes[1]:
            return axis
    return None


def _true(flags: Sequence[int] | None) -> list[int]:
    return [number for number, flag in enumerate(flags or ()) if flag]


def _shape(value: Value | None) -> Shape:
    return () if value is None else value.shape or ()


@hazard("H18")
def empty_results(function: Function) -> Iterator[Hazard]:
    """Find operations whose result has no elements, although their operand has some."""
    for operation in function.operations:
        operand, result = operation.operand("x"), operation.result
        if operand is None or result is None or operand.count == 0:
            continue
        if result.shape is not None and 0 in result.shape:
            yield at(operation, f"'{result.name}' has no elements")


@hazard("H10")
def unread_inputs(function: Function) -> Iterator[Hazard]:
    """Find inputs that no operation reads: a conversion may have folded what read them."""
    needed = function.needed
    for value in function.inputs:
        if value not in needed:
            what = "only what is thrown away reads it" if value.readers else "no operation reads it"
            yield Hazard(f"input '{value.name}'", what)


@hazard("H11")
def constant_outputs(function: Function) -> Iterator[Hazard]:
    """Find outputs that are the same whatever the inputs are."""
    for value in function.outputs:
        if function.inputs and value not in function.from_inputs:
            yield Hazard(f"output '{value.name}'", "it depends on no input")


@hazard("H12")
def constants_of_one_size(function: Function) -> Iterator[Hazard]:
    """Find constants of one size that meet a flexible dimension: only that size works."""
    for operation in function.operations:
        if operation.type not in _BROADCASTING:
            continue
        values = [one for one in operation.all_operands() if one.shape is not None]
        fixed = [one for one in values if one.is_constant]
        others = [one for one in values if not one.is_constant]
        for constant in fixed:
            size = next((n for one in others for n in _clashes(constant, one)), None)
            if size is not None:
                what = constant.name or "a constant"
                yield at(operation, f"'{what}' has {size} elements along a flexible dimension")
                break


def _clashes(constant: Value, other: Value) -> Iterator[int]:
    """Yield sizes above 1 of a constant where the other value has a flexible dimension."""
    one: Shape = constant.shape or ()
    two: Shape = other.shape or ()
    for size, flexible in zip(reversed(one), reversed(two), strict=False):
        if flexible is None and size is not None and size > 1:
            yield size


_EXACT = {"FLOAT16": 2**11, "FLOAT32": 2**24}
_ARITHMETIC = COPIES | {
    *("add", "sub", "mul", "real_div", "floor_div", "mod", "abs", "sign", "select", "clip"),
    *("log", "exp", "sqrt", "rsqrt", "sigmoid", "tanh", "inverse"),
    *("maximum", "minimum", "reduce_sum", "reduce_mean", "concat", "stack", "square", "pow"),
}
_TO_WHOLE = frozenset(("floor", "ceil", "round", "floor_div", "mod"))
_CASTS = frozenset(("cast",))
_LOOKUPS = ("gather", "gather_nd", "gather_along_axis")
_MAX_CUTS = 8  # of sizes that are followed


@hazard("H05")
def integers_through_floats(function: Function) -> Iterator[Hazard]:
    """Find integers without a bound that are computed with as floats, and are integers after."""
    seen: set[Operation] = set()
    again = function.reading(_makes_whole, lambda one: one.type in _ARITHMETIC)
    shaped = COPIES - _CASTS
    returned = frozenset(one.origin(shaped) for one in function.outputs)
    for cast in function.of_type("cast"):
        x, result = cast.operand("x"), cast.result
        if x is None or result is None or x.is_constant or not x.is_integer:
            continue
        limit = _EXACT.get(result.dtype or "")
        if limit is None or function.bounds(x).largest <= limit:
            continue
        place = x.origin().producer
        if place is None or place.type not in _TO_WHOLE or result not in returned:
            place = _integer_again(result, again)
        if place is not None and place not in seen:
            seen.add(place)
            yield at(
                place,
                f"the integer '{x.name}' is computed with as {result.dtype}, which is exact up to "
                f"{limit} only",
            )


def _makes_whole(operation: Operation) -> bool:
    result = operation.result
    is_cast = operation.type == "cast" and result is not None and result.is_integer
    return is_cast or operation.type in _TO_WHOLE


def _integer_again(value: Value, again: frozenset[Operation]) -> Operation | None:
    """Return the first arithmetic on a cast integer if its result is an integer again, or None.

    `again` holds the operations that an integer is made of: by `floor`, or by a cast.
    """
    queue = deque([value])
    while queue:
        value = queue.popleft()
        for reader in value.readers:
            if reader.type not in COPIES:
                if reader.type in _TO_WHOLE or (reader in again and reader.type in _ARITHMETIC):
                    return reader
            elif reader.operand("x") is value and reader.result and not _makes_whole(reader):
                queue.append(reader.result)
    return None


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
        found = added.origin().numbers
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
        start, width = lookup.whole("batch_dims", 0), (indices.shape or (None,))[-1]
    else:
        axis, width = lookup.whole("axis", 0), 1
        start = None if axis is None else axis % max(1, len(shape))
    if start is None or width is None:
        return None
    sizes = list(shape[start : start + width])
    return (start, sizes) if sizes else None


def _first_dimension(added: Value) -> int | None:
    """Return the first dimension of computed sizes, which are cut from a `shape` operation."""
    cut = added.origin().producer
    for _ in range(_MAX_CUTS):
        if cut is None or cut.type not in ("slice_by_size", "slice_by_index", "gather"):
            break
        source = cut.operand("x")
        begin = cut.numbers("indices" if cut.type == "gather" else "begin")
        if source is None or not begin:
            return None
        if source.made_by("shape") is not None:
            return begin[0] if begin[0] >= 0 else None
        cut = source.origin().producer
    return 0 if cut is not None and cut.type == "shape" else None


def _text(sizes: Sequence[int | None]) -> str:
    return str(["?" if one is None else one for one in sizes]).replace("'", "")
