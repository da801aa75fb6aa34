"""Known defects of releases of coremltools, and of what Core ML makes of their operations.

A row of `DEFECTS` is an operation that a release emits, the condition that makes it wrong, the
versions, and what to look at. A defect with a kind of its own has a lint of its own instead. To add
one, append a row, and to `tests/hazards/test_defects.py` the program that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.artifact.hazards.graph import Operation
from harness.artifact.hazards.lint import Function, Hazard, at, hazard

_FOLDED = re.compile(r"(scatter|scatter_along_axis|scatter_nd|scaled_dot_product_attention)_\d+")
_PRECISION = re.compile(r"_to_fp16$")


@dataclass(frozen=True)
class Defect:
    """A defect: the operations that show it, what to look at, the report.

    Packages of coremltools from `fixed` on, and of other converters, do not have it; without
    `fixed`, it is Core ML that computes the operation wrongly, whoever emits it.
    """

    operations: tuple[str, ...]
    shows: Callable[[Function, Operation], bool]
    look: str
    report: str
    fixed: tuple[int, ...] | None = None


def _has_base_two(function: Function, operation: Operation) -> bool:
    """Return whether it is `pow(2, y)`, which takes Core ML's fast path of `pow(x, 2)`."""
    base = operation.operand("x")
    found, exponent = function.bounds(base), operation.operand("y")
    is_two = base is not None and base.is_constant and found.low == found.high == 2
    return is_two and exponent is not None and exponent.is_float


def _has_negative_dividend(function: Function, operation: Operation) -> bool:
    """Return whether it divides a negative integer; the remainder's sign is the device's."""
    x, y = operation.operand("x"), operation.operand("y")
    held = function.bounds(x).held
    if x is None or x.is_float or y is None or y.is_constant:
        return False
    return held is not None and held[0] < 0


def _is_half_plane(function: Function, operation: Operation) -> bool:
    """Return whether it is a part of `atan2`, whose divisor is shifted away from 0."""
    x = operation.operand("x")
    quotient = None if x is None else x.made_by("real_div")
    divisor = None if quotient is None else quotient.operand("y")
    shifted = None if divisor is None else divisor.made_by("add")
    for operand in () if shifted is None else shifted.all_operands():
        shift = operand.made_by("mul")
        sizes = [] if shift is None else [one.number for one in shift.all_operands()]
        if any(size is not None and 0 < size < 1e-6 for size in sizes):
            return True
    return False


def _reaches_its_bound(function: Function, operation: Operation) -> bool:
    """Return whether it cuts a random number for `randint`, and nothing bounds the result."""
    x, result = operation.operand("x"), operation.result
    if x is None or result is None or result.is_float or x.made_by("random_uniform") is None:
        return False
    return not any(reader.type in ("minimum", "clip") for reader in result.readers)


DEFECTS = (
    Defect(
        ("pow",),
        _has_base_two,
        "Core ML squares the exponent; write `exp(y * log(2))`, or compare on a device",
        "CT 2628",
    ),
    Defect(
        ("mod",),
        _has_negative_dividend,
        "the sign of its result depends on the device, and indices made of it are wrong",
        "CT PR 2778",
    ),
    Defect(
        ("atan",),
        _is_half_plane,
        "an `atan2` made of it is 0 instead of pi where y is 0 and x negative",
        "CT PR 2769",
        (9, 1),
    ),
    Defect(
        ("cast",),
        _reaches_its_bound,
        "a `randint` made of it may give its upper bound; an index of that size is out of range",
        "CT 2568",
        (9, 1),
    ),
)


@hazard("H14")
def known_defects(function: Function) -> Iterator[Hazard]:
    """Find operations that a release emits wrongly, or that Core ML computes wrongly."""
    for defect in DEFECTS:
        if defect.fixed is not None and not function.is_before(*defect.fixed):
            continue
        for operation in function.of_type(*defect.operations):
            if defect.shows(function, operation):
                yield at(operation, f"{defect.look} ({defect.report})")


@hazard("H15")
def folded_constants(function: Function) -> Iterator[Hazard]:
    """Find constants that a conversion computed by rules that differ from the operation's.

    coremltools names such a constant after the operation: scatters were folded as overwriting
    ones, attention without its mask.
    """
    for value in function.constants if function.version is not None else ():
        folded = _FOLDED.fullmatch(_PRECISION.sub("", value.name))
        if folded is not None:
            yield Hazard(f"constant '{value.name}'", f"it was folded from a {folded[1]}")
