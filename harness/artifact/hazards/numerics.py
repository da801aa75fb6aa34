"""Hazards of numbers: infinities that become NaN, exponentials and constants beyond FLOAT16.

The limits of FLOAT16: the largest value is 65504, so `exp` overflows above 11.09; digits are lost
below 6.1e-5, and 3e-8 rounds to 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import numpy as np

from harness.artifact.hazards.bounds import HALF_MAX, HALF_TINY, ROUNDS_TO_INFINITY, Bounds
from harness.artifact.hazards.graph import COPIES, Operation, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard

_EXP_LIMITS = {
    "exp": log(HALF_MAX),
    "exp2": 16.0,
    "sinh": log(2 * HALF_MAX),
    "cosh": log(2 * HALF_MAX),
}
_PROBABILITIES = ("softmax", "sigmoid", "exp", "exp2", "tanh", "softplus")
_PASSED = COPIES | {
    *("mul", "add", "sub", "real_div", "reduce_sum", "cumsum", "reduce_mean", "clip", "maximum"),
    *("concat", "gather", "gather_along_axis", "gather_nd", "select", "split", "slice_by_index"),
    *("slice_by_size", "pow", "sqrt", "square", "reduce_max", "reduce_min", "minimum"),
}
"""Operations that hand a small value on to what reads them."""
_ADDED = COPIES | {"add", "slice_by_index", "slice_by_size", "select"}
_HALF_STEP = {"FLOAT16": 2.0**-11, "FLOAT32": 2.0**-20}
_LEAST_EPSILON = 1e-6
_LARGEST_ANGLE = 64.0  # above it, neighbours in FLOAT16 are 1/16 apart
_HARMLESS_WITH_INFINITY = frozenset(
    (
        *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal", "clip"),
        *("maximum", "minimum", "max_pool", "pad", "cast", "fill"),
    )
)


@hazard("H02")
def nan_from_infinities(function: Function) -> Iterator[Hazard]:
    """Find differences of equal infinities and products of an infinity and zero."""
    softened = _softened(function)
    for operation in function.of_type("sub", "add", "mul"):
        x, y, result = operation.operand("x"), operation.operand("y"), operation.result
        if x is None or y is None or result is None or not result.is_float:
            continue
        a, b = function.bounds(x), function.bounds(y)
        band = y.made_by("band_part") if operation.type == "sub" else None
        source = None if band is None else band.operand("x")
        if source is not None and source.origin() is x.origin():
            if a.minus or a.plus:
                yield at(operation, f"it subtracts a band of '{x.name}', which holds infinities")
            elif source.origin() in function.inputs or (
                a.held is None and not np.isfinite(a.largest) and operation in softened
            ):
                yield at(operation, f"it subtracts a band of '{x.name}', which may be infinite")
        elif problem := _indefinite(operation, a, b):
            yield at(operation, problem)


def _indefinite(operation: Operation, a: Bounds, b: Bounds) -> str:
    """Return what of an operation is NaN by its operands' bounds, "" for nothing."""
    if operation.type == "mul":
        for one, other in ((a, b), (b, a)):
            if (one.minus or one.plus) and other.has_zero:
                return "it multiplies an infinity by what may be 0"
        return ""
    minus, plus = (b.minus, b.plus) if operation.type == "sub" else (b.plus, b.minus)
    if (a.minus and minus) or (a.plus and plus):
        return "infinities of one sign may be subtracted from one another"
    return ""


@hazard("H03")
def log_of_underflow(function: Function) -> Iterator[Hazard]:
    """Find logarithms in FLOAT16 of what an exponential makes, which may round to 0."""
    sources = _probabilities(function)
    for operation in function.of_type("log"):
        x = operation.operand("x")
        if x is None or x.dtype != "FLOAT16" or x.is_constant:
            continue
        epsilon = operation.number("epsilon", 1e-45) or 0.0
        if function.bounds(x).low + epsilon >= HALF_TINY or _is_weighted(operation, x):
            continue
        if x in sources:
            _, source = sources[x]
            yield at(operation, f"'{x.name}' comes from {source.place} and may round to 0")


def _probabilities(function: Function) -> dict[Value, tuple[int, Operation]]:
    """Return the nearest operation that makes each value small, after how many that pass it on."""
    found: dict[Value, tuple[int, Operation]] = {}
    for operation in function.operations:
        if operation.type in _PROBABILITIES:
            found.update((result, (0, operation)) for result in operation.results)
        elif operation.type in _PASSED:
            known = [found[value] for value in operation.all_operands() if value in found]
            if known:
                steps, source = min(known, key=lambda one: one[0])
                found.update((result, (steps + 1, source)) for result in operation.results)
    return found


def _is_weighted(operation: Operation, x: Value) -> bool:
    """Return whether a logarithm is only multiplied by its operand, which may round to 0."""
    readers = [one for result in operation.results for one in result.readers]
    return bool(readers) and all(
        one.type == "mul" and any(other.origin() is x.origin() for other in one.all_operands())
        for one in readers
    )


@hazard("H04")
def exp_overflow(function: Function) -> Iterator[Hazard]:
    """Find exponentials in FLOAT16 whose arguments have no bound that keeps them finite."""
    for operation in function.of_type(*_EXP_LIMITS, "pow"):
        x, result, limit = operation.operand("x"), operation.result, _exp_limit(operation)
        if operation.type == "pow":
            x = operation.operand("y")
        if x is None or result is None or result.dtype != "FLOAT16" or limit is None:
            continue
        found = function.bounds(x)
        is_odd = operation.type in ("sinh", "cosh")
        if (found.largest if is_odd else found.high) <= limit or _only_divides(result):
            continue
        yield at(operation, f"it overflows where '{x.name}' is above {limit:.4g}")


def _exp_limit(operation: Operation) -> float | None:
    """Return the argument above which an exponential overflows, None for another operation."""
    if operation.type != "pow":
        return _EXP_LIMITS[operation.type]
    base = operation.number("x")
    return log(HALF_MAX) / log(base) if base is not None and base > 1 else None


@hazard("H06")
def hidden_epsilon(function: Function) -> Iterator[Hazard]:
    """Find reciprocals with an epsilon that changes what they may get."""
    for operation in function.of_type("inverse"):
        x, epsilon = operation.operand("x"), operation.number("epsilon")
        if x is None or epsilon is None or epsilon < _LEAST_EPSILON:
            continue
        low = function.bounds(x).low
        if low <= 0 or epsilon / low > _HALF_STEP.get(x.dtype or "", 0.0):
            least = "without a lower bound above 0" if low <= 0 else f"which may be {low:.3g}"
            yield at(operation, f"it adds {epsilon:.2g} to '{x.name}', {least}")


@hazard("H07")
def inflated_norm_epsilon(function: Function) -> Iterator[Hazard]:
    """Find norms that scale by the largest magnitude and then add the unscaled epsilon."""
    for operation in function.of_type("sqrt", "rsqrt"):
        x = operation.operand("x")
        total = None if x is None else x.made_by("add")
        epsilon = _constant_operand(total) if total is not None else operation.number("epsilon")
        mean = _moment(x if total is None else _other_operand(total))
        scaled = None if mean is None else _squared(mean)
        largest = None if scaled is None else _scale(scaled)
        if largest is not None and epsilon is not None and epsilon >= 1e-11:
            yield at(
                operation,
                f"its epsilon {epsilon:.3g} counts {largest.results[0].name!r} squared times, and "
                "a row of zeros is divided by 0",
            )


@hazard("H08")
def beyond_half(function: Function) -> Iterator[Hazard]:
    """Find constants that FLOAT16 cannot hold: infinities and NaN where they are computed with.

    NaN in FLOAT32 comes from a conversion that computed with infinities.
    """
    softened = _softened(function)
    for value in function.constants:
        array = value.array if value.is_float else None
        if array is None or array.dtype.kind != "f" or not array.size:
            continue  # a constant may hold another type than it declares
        problem = _beyond(array)
        if not problem or (problem != "NaN" and value.dtype != "FLOAT16"):
            continue
        readers = [one for one in _final_readers(value) if one.type not in _HARMLESS_WITH_INFINITY]
        if not readers:
            continue
        is_mask = readers[0] in softened
        if problem != "-inf" or _masks_whole_rows(function, array, readers[0], is_mask):
            yield at(readers[0], f"its constant '{value.name}' holds {problem}")
    for operation in function.of_type("cast"):
        x, result = operation.operand("x"), operation.result
        found = function.bounds(x)
        if x is None or result is None or result.dtype != "FLOAT16" or found.held is None:
            continue
        largest = max(found.held, key=abs)
        if abs(largest) >= ROUNDS_TO_INFINITY:
            yield at(operation, f"'{x.name}' holds {largest:.3g}, which becomes infinite")


@hazard("H16")
def coarse_angles(function: Function) -> Iterator[Hazard]:
    """Find sines and cosines in FLOAT16 of angles so large that neighbours are far apart."""
    positions = _positions(function)
    for operation in function.of_type("sin", "cos"):
        x = operation.operand("x")
        if x is None or x.dtype != "FLOAT16" or x.is_constant:
            continue
        largest = function.bounds(x).largest
        if largest > _LARGEST_ANGLE and (x in positions or np.isfinite(largest)):
            reach = f"reaches {largest:.4g}" if np.isfinite(largest) else "has no bound"
            yield at(operation, f"the angle '{x.name}' {reach}, and FLOAT16 rounds it")


def _positions(function: Function) -> set[Value]:
    """Return the values that are computed from positions: a range, or integers cast to floats."""
    found: set[Value] = set()
    for operation in function.operations:
        x = operation.operand("x") if operation.type == "cast" else None
        is_start = operation.type == "range_1d" or (x is not None and x.is_integer)
        if is_start or any(value in found for value in operation.all_operands()):
            found.update(operation.results)
    return found


def _softened(function: Function) -> frozenset[Operation]:
    """Return the operations with a result that a softmax reads, through sums and copies."""
    return function.reading(lambda one: one.type == "softmax", lambda one: one.type in _ADDED)


def _only_divides(value: Value) -> bool:
    """Return whether an infinity here only gives 0, as in `1 / (1 + exp(-x))`."""
    queue, seen = [value], {value}
    while queue:
        current = queue.pop()
        for reader in current.readers:
            if reader.type == "add" and _constant_operand(reader) is not None:
                queue += [result for result in reader.results if result not in seen]
                seen.update(reader.results)
            elif reader.type != "inverse" and not (
                reader.type == "real_div" and reader.operand("x") is not current
            ):
                return False
    return bool(value.readers)


def _constant_operand(operation: Operation) -> float | None:
    numbers = [one.number for one in operation.all_operands()]
    return next((one for one in numbers if one is not None), None)


def _other_operand(operation: Operation) -> Value | None:
    return next((one for one in operation.all_operands() if one.number is None), None)


def _moment(value: Value | None) -> Value | None:
    """Return what a value is the mean or the sum of; a mean may be a sum times 1 / n."""
    source = None if value is None else value.multiple()[0]
    maker = None if source is None else source.made_by("reduce_mean", "reduce_sum")
    return None if maker is None else maker.operand("x")


def _squared(value: Value) -> Value | None:
    maker = value.made_by("square", "mul", "pow")
    if maker is None or (maker.type == "mul" and maker.operand("x") is not maker.operand("y")):
        return None
    return maker.operand("x")


def _scale(value: Value) -> Operation | None:
    """Return the maximum of magnitudes that a value is divided by."""
    maker = value.made_by("real_div", "mul")
    if maker is None:
        return None
    for operand in maker.all_operands():
        inverse = operand.made_by("inverse")
        scale = inverse.operand("x") if inverse is not None else operand
        largest = None if scale is None else scale.made_by("reduce_max")
        magnitudes = None if largest is None else largest.operand("x")
        if magnitudes is not None and magnitudes.made_by("abs") is not None:
            return largest
    return None


def _final_readers(value: Value) -> list[Operation]:
    """Return the operations that read a value or a copy of it, without the copies."""
    found: list[Operation] = []
    queue = [(value, reader) for reader in reversed(value.readers)]
    while queue:
        source, reader = queue.pop()
        copy = reader.result
        if reader.type not in COPIES - {"cast"} or copy is None:
            found.append(reader)
        elif reader.operand("x") is source:  # each copy has one source, so none comes twice
            queue += [(copy, after) for after in reversed(copy.readers)]
    return list(dict.fromkeys(found))


def _beyond(array: np.ndarray) -> str:
    """Return what an array of floats holds that is not finite: "NaN", "inf", "-inf" or ""."""
    if array.dtype == np.float16:  # its own functions are slow
        bits = array.view(np.uint16)
        special = array[(bits & 0x7C00) == 0x7C00]
    else:
        special = array[~np.isfinite(array)]
    if not special.size:
        return ""
    if np.isnan(special).any():
        return "NaN"
    return "-inf" if (special < 0).all() else "inf"


def _masks_whole_rows(
    function: Function, array: np.ndarray, reader: Operation, is_mask: bool
) -> bool:
    """Return whether -inf may fill a whole row of a softmax, or is computed with otherwise."""
    if not is_mask:
        return reader.type not in ("select", "add", "sub", "mul", "concat")
    if array.ndim and array.size > 1:
        return bool(np.isneginf(array.reshape(-1, array.shape[-1])).all(1).any())
    condition = reader.operand("cond")
    return condition is not None and condition in function.from_inputs
