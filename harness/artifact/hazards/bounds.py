"""What the elements of a value can be: bounds, infinities, integers; and their arithmetic."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan

import numpy as np

from harness.artifact.hazards.graph import Value

HALF_MAX = 65504.0
HALF_TINY = 2.0**-14  # the smallest normal number
ROUNDS_TO_INFINITY = 65520.0
_MAX_READ = 1 << 20  # elements of a constant: larger ones are weights
LIMITS = {
    "INT8": (-(1 << 7), (1 << 7) - 1),
    "UINT8": (0, (1 << 8) - 1),
    "INT16": (-(1 << 15), (1 << 15) - 1),
    "UINT16": (0, (1 << 16) - 1),
}
"""The least and the greatest value of integers of fewer than 32 bits."""


@dataclass(frozen=True)
class Bounds:
    """What a value's elements can be.

    `minus` and `plus` tell whether an infinity occurs: a constant holds it, or FLOAT16 rounds to
    it. `whole` tells whether all are integers. `held` are the least and the largest finite number
    that a constant brings in, None without one.
    """

    low: float = -inf
    high: float = inf
    minus: bool = False
    plus: bool = False
    whole: bool = False
    held: tuple[float, float] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether both bounds occur."""
        return self.held == (self.low, self.high)

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def least(self) -> float:
        """The smallest magnitude."""
        return 0.0 if self.has_zero else min(abs(self.low), abs(self.high))

    @property
    def has_zero(self) -> bool:
        """Whether zero is between the bounds."""
        return self.low <= 0 <= self.high

    @property
    def has_infinity(self) -> bool:
        """Whether an infinity occurs."""
        return self.minus or self.plus

    def __neg__(self) -> Bounds:
        held = None if self.held is None else (-self.held[1], -self.held[0])
        return Bounds(-self.high, -self.low, self.plus, self.minus, self.whole, held)

    def __add__(self, other: Bounds) -> Bounds:
        low, high = self.low + other.low, self.high + other.high
        return Bounds(
            -inf if isnan(low) else low,
            inf if isnan(high) else high,
            self.minus or other.minus,
            self.plus or other.plus,
            self.whole and other.whole,
            _held_together(self, other, operator.add),
        )

    def __mul__(self, other: Bounds) -> Bounds:
        pairs = itertools.product((self.low, self.high), (other.low, other.high))
        corners = [product(*pair) for pair in pairs]
        infinite = self.has_infinity or other.has_infinity
        return Bounds(
            min(corners),
            max(corners),
            infinite and min(corners) == -inf,
            infinite and max(corners) == inf,
            self.whole and other.whole,
            _held_together(self, other, product),
        )

    def __truediv__(self, other: Bounds) -> Bounds:
        if other.has_zero:
            low = 0.0 if self.low >= 0 and other.low >= 0 else -inf
            return Bounds(low, inf, other.is_exact and low < 0, other.is_exact)
        held = None if not other.is_exact else (1 / other.high, 1 / other.low)
        inverse = Bounds(1 / other.high, 1 / other.low, held=held)
        return replace(self * inverse, whole=False)


UNKNOWN = Bounds()
FLAG = Bounds(0, 1, whole=True, held=(0, 1))
"""The bounds of a BOOL."""


def product(one: float, other: float) -> float:
    """Return a product in which 0 times infinity is 0."""
    return 0.0 if one == 0 or other == 0 else one * other


def single(value: float) -> Bounds:
    """Return the bounds of one number."""
    is_whole = isfinite(value) and value == int(value)
    held = (value, value) if isfinite(value) else None
    return Bounds(value, value, value == -inf, value == inf, is_whole, held)


def _held_together(
    one: Bounds, other: Bounds, function: Callable[[float, float], float]
) -> tuple[float, float] | None:
    """Return what two constants give together.

    A huge one hides what is added to it, and may be multiplied by 1.
    """
    if one.held is not None and other.held is not None:
        corners = [function(*pair) for pair in itertools.product(one.held, other.held)]
        return (min(corners), max(corners)) if all(map(isfinite, corners)) else None
    held, unknown = (one.held, other) if one.held is not None else (other.held, one)
    if held is None or max(map(abs, held)) <= HALF_MAX:
        return None
    factor = 1.0 if function is operator.add else min(1.0, unknown.largest)
    return held[0] * factor, held[1] * factor


def hull(sources: Iterable[Bounds]) -> Bounds:
    """Return the bounds of values that come from any of these sources."""
    found = list(sources)
    held = [one.held for one in found if one.held is not None]
    if not found:
        return UNKNOWN
    return Bounds(
        min(one.low for one in found),
        max(one.high for one in found),
        any(one.minus for one in found),
        any(one.plus for one in found),
        all(one.whole for one in found),
        (min(one[0] for one in held), max(one[1] for one in held)) if held else None,
    )


def bounds_of_constant(value: Value) -> Bounds:
    """Return the bounds of a constant's values; those of any other value are unknown."""
    array = value.array
    if array is None or not 0 < array.size <= _MAX_READ or array.dtype.kind not in "fiub":
        return as_declared(value, UNKNOWN)
    wide = array.astype(np.float64)
    wide = wide[~np.isnan(wide)]
    if not wide.size:
        return UNKNOWN
    low, high = float(wide.min()), float(wide.max())
    finite = wide[np.isfinite(wide)]
    is_whole = bool((finite == np.floor(finite)).all())
    held = (float(finite.min()), float(finite.max())) if finite.size else None
    return Bounds(low, high, low == -inf, high == inf, is_whole, held)


class Known(dict[Value, Bounds]):
    """The bounds of values; those of a constant are found when they are first asked for."""

    def __missing__(self, value: Value) -> Bounds:
        self[value] = found = bounds_of_constant(value)
        return found


def as_declared(value: Value, found: Bounds) -> Bounds:
    """Return the bounds of a result once it is rounded to its dtype, in which integers wrap."""
    if value.dtype == "BOOL":
        return FLAG if found.has_zero else single(1)
    if value.is_integer:
        low, high = LIMITS.get(value.dtype or "", (-inf, inf))
        ends = [end for end in (found.low, found.high) if isfinite(end)]
        is_wide = any(not -(1 << 31) <= end < 1 << 31 for end in ends)
        if low <= found.low and found.high <= high and not is_wide:
            return replace(found, whole=True)
        held = found.held
        fits = held is not None and low <= held[0] and held[1] <= high
        return Bounds(low, high, whole=True, held=held if fits and not is_wide else None)
    if value.dtype == "FLOAT16" and found.held is not None:
        below, above = found.held[0] <= -ROUNDS_TO_INFINITY, found.held[1] >= ROUNDS_TO_INFINITY
        return replace(
            found,
            low=-inf if below else found.low,
            high=inf if above else found.high,
            minus=found.minus or below,
            plus=found.plus or above,
            held=None if below or above else found.held,
        )
    return found
