"""The bounds of an operation's results, from those of its operands.

Bounds say what can occur whatever the inputs are, so that a lint may be silent about
`exp(x - max(x))`, which is at most 1. The ranges are those of the operations' definitions in
coremltools (`mil/ops/defs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, inf, log, sqrt

import numpy as np

from harness.artifact.hazards.bounds import FLAG, UNKNOWN, Bounds, Known, hull, product, single
from harness.artifact.hazards.graph import Operation, Value

_MAX_DIMENSION = 2.0**24
_CASTS = frozenset(("cast", "identity"))
Rule = Callable[[Operation, list[Bounds]], Bounds]


def _sub(operation: Operation, given: list[Bounds]) -> Bounds:
    found = given[0] + -given[1]
    x, y = operation.operand("x"), operation.operand("y")
    if x is not None and y is not None and is_at_least(y, x):
        found = replace(found, high=min(found.high, 0.0))
    if x is not None and y is not None and is_at_least(x, y):
        found = replace(found, low=max(found.low, 0.0))
    return found


def is_at_least(larger: Value, smaller: Value) -> bool:
    """Return whether a value is never below another: it is a maximum of it, or its magnitude."""
    maker = larger.made_by("reduce_max", "reduce_log_sum_exp", "maximum", "abs")
    source = smaller.origin()
    return maker is not None and any(one.origin() is source for one in maker.all_operands())


def _mul(operation: Operation, given: list[Bounds]) -> Bounds:
    """Return the bounds of a product; that of a value and a multiple of it has one sign."""
    x, y = given
    (one, factor), (other, by) = (operation.operands[name][0].multiple() for name in ("x", "y"))
    if one is other and factor and by:
        if factor == by == 1:
            return _square(operation, given)
        return Bounds(low=0.0) if factor * by > 0 else Bounds(high=0.0)
    return x * y


def _pow(operation: Operation, given: list[Bounds]) -> Bounds:
    x, exponent = given[0], operation.number("y")
    if exponent == 2:
        return _square(operation, given[:1])
    is_even = exponent is not None and exponent % 2 == 0
    return Bounds(low=0.0) if is_even or x.low >= 0 else UNKNOWN


def _floor_div(operation: Operation, given: list[Bounds]) -> Bounds:
    found = given[0] / given[1]
    is_exact = given[0].whole and given[1].whole
    low = float(np.floor(found.low)) if is_exact else found.low - 1
    return replace(found, low=low, whole=True, held=None)


def _mod(operation: Operation, given: list[Bounds]) -> Bounds:
    """Return the bounds of a remainder, which has the sign of its divisor."""
    x, y = given
    is_whole = x.whole and y.whole
    return Bounds(0, y.high - is_whole, whole=is_whole) if y.low > 0 else UNKNOWN


def _square(operation: Operation, given: list[Bounds]) -> Bounds:
    x = given[0]
    least, largest = product(x.least, x.least), product(x.largest, x.largest)
    held = (least, largest) if x.is_exact and largest < inf else None
    return Bounds(least, largest, False, x.has_infinity, x.whole, held)


def _abs(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    held = (x.least, x.largest) if x.is_exact and x.largest < inf else None
    return Bounds(x.least, x.largest, False, x.has_infinity, x.whole, held)


def _monotonic(function: Callable[[float], float], low: float, high: float) -> Rule:
    """Return the rule of a function that rises, for arguments from `low` to `high`."""

    def rule(operation: Operation, given: list[Bounds]) -> Bounds:
        x = given[0]
        ends = [_at(function, min(max(end, low), high)) for end in (x.low, x.high)]
        held = (ends[0], ends[1]) if x.is_exact and ends[1] < inf else None
        return Bounds(ends[0], ends[1], False, x.plus and ends[1] == inf, False, held)

    return rule


def _at(function: Callable[[float], float], x: float) -> float:
    try:
        return function(x)
    except OverflowError:
        return inf


def _log(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    epsilon = operation.number("epsilon", 1e-45) or 0.0
    low, high = x.low + epsilon, x.high + epsilon
    reaches_zero = x.is_exact and low <= 1e-30  # 1e-45 is 0 in FLOAT16
    return Bounds(
        log(low) if low > 0 else -inf,
        log(high) if 0 < high < inf else inf,
        minus=reaches_zero and any(one.dtype == "FLOAT16" for one in operation.results),
    )


def _rsqrt(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    epsilon = operation.number("epsilon", 0.0) or 0.0
    low, high = max(x.low, 0.0) + epsilon, x.high + epsilon
    return Bounds(1 / sqrt(high) if high > 0 else 0.0, 1 / sqrt(low) if low > 0 else inf)


def _inverse(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    epsilon = operation.number("epsilon", 0.0) or 0.0
    shifted = replace(x, low=x.low + epsilon, high=x.high + epsilon)
    return single(1) / shifted


def _clip(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    low, high = operation.number("alpha", -inf), operation.number("beta", inf)
    if low is None or high is None:
        return x
    return Bounds(max(x.low, low), min(x.high, high), whole=x.whole)


def _maximum(operation: Operation, given: list[Bounds]) -> Bounds:
    x, y = given
    low, high = max(x.low, y.low), max(x.high, y.high)
    return Bounds(low, high, x.minus and y.minus, x.plus or y.plus, x.whole and y.whole)


def _minimum(operation: Operation, given: list[Bounds]) -> Bounds:
    return -_maximum(operation, [-one for one in given])


def _relu(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    return replace(x, low=max(x.low, 0.0), high=max(x.high, 0.0), minus=False, held=None)


def _reduce_max(operation: Operation, given: list[Bounds]) -> Bounds:
    return replace(given[0], minus=False, held=None)


def _reduce_min(operation: Operation, given: list[Bounds]) -> Bounds:
    return replace(given[0], plus=False, held=None)


def _mean(operation: Operation, given: list[Bounds]) -> Bounds:
    return replace(given[0], whole=False, held=None)


def _reduce_sum(operation: Operation, given: list[Bounds]) -> Bounds:
    """Return the bounds of a sum: at least 1 for `exp(x - max(x))`, of which one term is 1."""
    (x,) = given
    source, result = operation.operand("x"), operation.result
    count = source.count if source is not None else None
    terms: float = inf
    if count is not None and result is not None and result.count:
        terms = count if operation.type == "cumsum" else count / result.count
    low = product(min(x.low, 0.0), terms) if x.low < 0 else x.low
    high = product(x.high, terms) if x.high > 0 else x.high
    if operation.type == "reduce_sum" and _has_term_of_one(operation):
        low = 1.0
    return Bounds(low, high, x.minus, x.plus, x.whole)


def _has_term_of_one(total: Operation) -> bool:
    """Return whether a sum of `exp(x - max(x))` adds along all axes of the maximum."""
    difference = _maker(_maker(total, "exp"), "sub")
    if difference is None:
        return False
    x, y = difference.operand("x"), difference.operand("y")
    largest = y.made_by("reduce_max") if y is not None else None
    source = largest.operand("x") if largest is not None else None
    if x is None or source is None or largest is None:
        return False
    axes, of_maximum = (_axes(one, len(x.shape or ())) for one in (total, largest))
    is_within = axes is not None and of_maximum is not None and of_maximum <= axes
    return is_within and x.origin(_CASTS) is source.origin(_CASTS)


def _maker(operation: Operation | None, kind: str) -> Operation | None:
    """Return the operation of a type that makes another's `x`, with its axes in their order."""
    x = None if operation is None else operation.operand("x")
    maker = None if x is None else x.origin(_CASTS).producer
    return maker if maker is not None and maker.type == kind else None


def _axes(reduction: Operation, rank: int) -> set[int] | None:
    """Return the axes of a reduction, None if they cannot be read."""
    if "axes" not in reduction.operands:
        return set(range(rank))
    axes = reduction.numbers("axes")
    return None if axes is None or not rank else {axis % rank for axis in axes}


def _whole(operation: Operation, given: list[Bounds]) -> Bounds:
    (x,) = given
    return replace(x, low=x.low - 1, high=x.high + 1, whole=True, held=None)


_SAME: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("identity", "cast", "reshape", "transpose", "expand_dims", "squeeze", "tile"),
            *("reverse", "slice_by_index", "slice_by_size", "split", "gather", "gather_nd"),
            *("gather_along_axis", "reverse_sequence", "depth_to_space", "space_to_depth"),
            *("pixel_shuffle", "pixel_unshuffle", "batch_to_space", "space_to_batch"),
            *("reshape_like", "sliding_windows", "flatten2d", "max_pool"),
        ),
        ("x",),
    ),
    "concat": ("values",),
    "stack": ("values",),
    "select": ("a", "b"),
    "fill": ("value",),
    "fill_like": ("value",),
    "slice_update": ("x", "update"),
    "cond": ("block0", "block1"),
}
"""The operations whose results hold values of these parameters only."""
_UNIT = Bounds(0, 1)
_SIGNED = Bounds(-1, 1)
_FIXED: dict[str, Bounds] = {
    **dict.fromkeys(("softmax", "sigmoid", "sigmoid_hard"), _UNIT),
    **dict.fromkeys(("tanh", "sin", "cos", "erf", "softsign", "l2_norm"), _SIGNED),
    "sign": Bounds(-1, 1, whole=True),
    **dict.fromkeys(
        (
            *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
            *("logical_and", "logical_or", "logical_xor", "logical_not"),
        ),
        FLAG,
    ),
    **dict.fromkeys(
        ("shape", "reduce_argmax", "reduce_argmin", "argsort", "non_zero"),
        Bounds(0, _MAX_DIMENSION, whole=True),
    ),
}
"""The operations with results in one range. No dimension or index is above 2**24."""


_BETWEEN: dict[str, dict[str, float]] = {
    "one_hot": {"on_value": 1.0, "off_value": 0.0},
    "random_uniform": {"low": 0.0, "high": 1.0},
}
"""The operations with results from one parameter to another, and what these are by default."""


def _band(operation: Operation, given: list[Bounds]) -> Bounds:
    return hull([given[0], single(0)])


def _pad(operation: Operation, given: list[Bounds]) -> Bounds:
    value = operation.number("constant_val", 0.0)
    if value is None:
        return UNKNOWN
    return hull([given[0], single(value)])


def _softplus(x: float) -> float:
    return x if x > 700 else log(1 + exp(x))


_RULES: dict[str, Rule] = {
    "add": lambda _, given: given[0] + given[1],
    "sub": _sub,
    "mul": _mul,
    "real_div": lambda _, given: given[0] / given[1],
    "floor_div": _floor_div,
    "mod": _mod,
    "square": _square,
    "pow": _pow,
    "abs": _abs,
    "exp": _monotonic(exp, -inf, inf),
    "exp2": _monotonic(lambda x: 2.0**x, -inf, inf),
    "sqrt": _monotonic(sqrt, 0.0, inf),
    "softplus": _monotonic(_softplus, -inf, inf),
    "log": _log,
    "rsqrt": _rsqrt,
    "inverse": _inverse,
    "clip": _clip,
    "maximum": _maximum,
    "minimum": _minimum,
    "relu": _relu,
    "relu6": lambda _, given: Bounds(max(given[0].low, 0.0), 6.0),
    "gelu": lambda _, given: Bounds(-0.2, max(given[0].high, 0.0)),
    "silu": lambda _, given: Bounds(-0.3, max(given[0].high, 0.0)),
    "reduce_max": _reduce_max,
    "reduce_min": _reduce_min,
    "reduce_mean": _mean,
    "avg_pool": _mean,
    "reduce_sum": _reduce_sum,
    "cumsum": _reduce_sum,
    "reduce_sum_square": lambda _, given: Bounds(0.0),
    "reduce_l2_norm": lambda _, given: Bounds(0.0),
    "reduce_l1_norm": lambda _, given: Bounds(0.0),
    "floor": _whole,
    "ceil": _whole,
    "round": _whole,
    "band_part": _band,
    "pad": _pad,
}


def bounds_of_results(operation: Operation, known: Known) -> Bounds:
    """Return the bounds of an operation's results, before they are rounded to their dtype."""
    kind = operation.type
    if kind in _SAME:
        sources = [known[v] for name in _SAME[kind] for v in operation.operands.get(name, ())]
        return hull(sources)
    if kind in _BETWEEN:
        ends = {name: operation.operand(name) for name in _BETWEEN[kind]}
        given = {
            name: single(_BETWEEN[kind][name]) if v is None else known[v]
            for name, v in ends.items()
        }
        return hull(given.values())
    if kind in _FIXED:
        return _FIXED[kind]
    names = ("x", "y") if "y" in operation.operands else ("x",)
    operands = [operation.operand(name) for name in names]
    rule = _RULES.get(kind)
    if rule is None or None in operands:
        return UNKNOWN
    return rule(operation, [known[one] for one in operands if one is not None])
