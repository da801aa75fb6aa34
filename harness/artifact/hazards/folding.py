"""Hazards of a converter's passes: what they fold away, leave out, or rewrite wrongly.

What a pass has done shows in names: coremltools names a constant that a pass makes after the result
and the parameter (`scores_bias_0`), and a result that replaces another after the replaced one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from harness.artifact.hazards.graph import Operation, Shape, Value
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
        if _PRECISIONS.sub("", bias.name) != f"{name}_bias_0" or not np.any(bias.array):
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
        others = [one for one in values if one not in fixed]
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
