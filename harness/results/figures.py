"""What a case measures: figures with bounds, histograms of errors, and the errors of operations."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

from harness.errors import HarnessError
from harness.text import clip

# JSON cannot hold these numbers: a stream spells them as strings.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

# better -> (the sign between value and bound, does value meet bound)
DIRECTIONS = {
    "lower": ("<=", lambda value, bound: value <= bound),
    "higher": (">=", lambda value, bound: value >= bound),
    "exact": ("==", lambda value, bound: value == bound),
}
SMALLEST, LARGEST = -40, 20  # powers of two of a histogram; errors beyond count as these
MAX_OPERATION_BYTES = 600_000  # of a case's operations in the stream, whose lines end at 1 MiB
_MAX_OPERATIONS, _MAX_NAME, _MAX_PLACE = 10_000, 80, 200


@dataclass(frozen=True)
class Figure:
    """A measured number.

    `unit` follows the number in print ("dB", "ms/token", "bytes", "" for a ratio). The value must
    meet `bound`; without one it is only reported. `better` is "lower", "higher" or "exact". A
    scalar of numpy or torch is accepted and kept as a float or an int. `spread` is the distance
    between the quartiles of the samples, for the figure of a run that has taken several. `floor` is
    the noise of the precision: a change that is no larger means nothing. In dB, where noise is a
    level, a value above the floor is as good as the floor.

    Raises HarnessError for an unknown `better` and for a bound or floor that is not finite.
    """

    value: float
    unit: str = ""
    bound: float | None = None
    better: str = "lower"
    spread: float | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain_number(self.value))
        if self.better not in DIRECTIONS:
            raise HarnessError(
                f"A figure's better is {self.better!r}: it must be one of {', '.join(DIRECTIONS)}"
            )
        for name in ("bound", "floor"):
            if (limit := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain_number(limit))
                if not math.isfinite(limit):
                    raise HarnessError(f"A figure's {name} is {limit}: it must be a finite number")

    @property
    def finite(self) -> bool:
        """Whether the value is neither NaN nor infinite."""
        return math.isfinite(self.value)

    @property
    def within_bound(self) -> bool:
        """Whether the value meets its bound; it does if there is none.

        NaN and infinities never meet a bound, not even an infinity in the better direction: a check
        that can measure one (the SQNR of two equal tensors) limits it to a finite ceiling.
        """
        if self.bound is None:
            return True
        meets: Callable[[float, float], bool] = DIRECTIONS[self.better][1]
        return self.finite and meets(self.value, self.bound)

    def __str__(self) -> str:
        text = with_unit(self.value, self.unit)
        if self.bound is None:
            return text
        return f"{text} ({DIRECTIONS[self.better][0]} {number(self.bound)})"

    def to_json(self) -> dict[str, Any]:
        """Return the figure as a JSON object."""
        value = _spelled(self.value)
        rest = {"spread": self.spread, "floor": self.floor}
        return {
            "value": value,
            "unit": self.unit,
            "bound": self.bound,
            "better": self.better,
            **{name: given for name, given in rest.items() if given is not None},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Figure:
        """Read the figure that `to_json` wrote; `data` has been validated against the schema."""
        value = data["value"]
        return cls(
            value=_read(value),
            unit=data["unit"],
            bound=data["bound"],
            better=data["better"],
            spread=data.get("spread"),
            floor=data.get("floor"),
        )


def plain_number(value: SupportsFloat | SupportsIndex) -> float:
    """Return a Python int or float of the same value, which JSON and equality can handle."""
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        return float(value)


def number(value: float) -> str:
    """Return a number as text: four digits, or all of them for an integer."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def with_unit(value: float, unit: str) -> str:
    """Return a number as text, followed by its unit if it has one."""
    return f"{number(value)} {unit}".rstrip()


def _spelled(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _read(value: float | str) -> float:
    return NON_FINITE[value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Histogram:
    """How many values have an error of each size, in units of the largest that is allowed.

    `counts[i]` errors are at least `2**(first + i)` and less than twice that. `exact` values have
    no error, `lost` ones are NaN or infinite.
    """

    first: int
    counts: tuple[int, ...]
    exact: int = 0
    lost: int = 0

    @property
    def total(self) -> int:
        """The number of values."""
        return sum(self.counts) + self.exact + self.lost

    @property
    def worst(self) -> float:
        """The power of two that all errors are below: 0 if all values are exact."""
        return self.below(1.0)

    def below(self, part: float) -> float:
        """Return the power of two that the errors of this part of the values are below."""
        found, wanted = self.exact, part * self.total
        if found >= wanted:
            return 0.0
        for power, count in enumerate(self.counts, self.first + 1):
            found += count
            if found >= wanted:
                return float(2.0**power)
        return math.inf

    def to_json(self) -> dict[str, Any]:
        """Return the histogram as a JSON object."""
        return {"first": self.first, "counts": list(self.counts)} | {
            "exact": self.exact,
            "lost": self.lost,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """Read the histogram that `to_json` wrote."""
        return cls(data["first"], tuple(data["counts"]), data["exact"], data["lost"])


@dataclass(frozen=True)
class OperationError:
    """The error of an operation at a place of the program, the largest of all calls.

    `error` is in units of what is allowed: more than 1 is beyond the bound, None was not measured.
    `total` is the root mean square of the result's error, with that of its inputs, over the
    result's size; None without one. `layer` names the part of the model, "" where nobody knows it.
    """

    place: str
    operation: str
    result: str
    layer: str = ""
    error: float | None = None
    total: float | None = None

    @property
    def is_beyond(self) -> bool:
        """Whether the error is beyond its bound; NaN is."""
        return self.error is not None and not self.error <= 1

    @property
    def name(self) -> str:
        """The layer, the operation and its result."""
        return (f"{self.layer}, " if self.layer else "") + f"{self.operation} '{self.result}'"


@dataclass(frozen=True)
class Profile:
    """The errors of a program's operations, in the order of their execution.

    `measure` ends a sentence: an error is "the distance ...". `left_out` operations, those with the
    smallest errors, have no place in the stream.
    """

    measure: str
    operations: tuple[OperationError, ...]
    left_out: int = 0

    @property
    def first(self) -> OperationError | None:
        """The first operation whose error is beyond its bound."""
        return next((one for one in self.operations if one.is_beyond), None)

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object; names are cut, numbers have four digits."""
        kept = _largest([_row(one) for one in self.operations])
        numbers = {place: n for n, place in enumerate(dict.fromkeys(place for place, *_ in kept))}
        return {
            "measure": self.measure,
            "places": list(numbers),
            "operations": [[numbers[place], *rest] for place, *rest in kept],
            "left_out": self.left_out + len(self.operations) - len(kept),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Read the profile that `to_json` wrote; raise HarnessError for a place that it lacks."""
        places = data["places"]
        operations = []
        for place, operation, result, layer, *errors in data["operations"]:
            if place >= len(places):
                raise HarnessError(f"operation {result} is at place {place} of {len(places)}")
            error, total = (None if one is None else _read(one) for one in errors)
            operations.append(OperationError(places[place], operation, result, layer, error, total))
        return cls(data["measure"], tuple(operations), data["left_out"])


def _row(one: OperationError) -> list[Any]:
    names = [clip(name, _MAX_NAME) for name in (one.operation, one.result, one.layer)]
    # Four digits must not hide that an error is beyond its bound: 1.00001
    digits = 17 if one.is_beyond and f"{one.error:.4g}" == "1" else 4
    error, total = (
        None if value is None else _spelled(float(f"{value:.{places}g}"))
        for value, places in ((one.error, digits), (one.total, 4))
    )
    return [clip(one.place, _MAX_PLACE), *names, error, total]


def _largest(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Return the rows in their order, without those of the smallest errors if a line ends before.

    An error that JSON spells as a text is larger than all. The first row beyond its bound, which
    makes the error that others inherit, is kept.
    """

    def size(index: int) -> float:
        error = rows[index][-2]
        return math.inf if isinstance(error, str) else -1.0 if error is None else error

    used = 0
    kept: list[int] = []
    places: set[str] = set()
    first = next((index for index in range(len(rows)) if size(index) > 1), -1)
    for index in sorted(range(len(rows)), key=lambda index: (index != first, -size(index), index)):
        place, *rest = rows[index]
        used += len(json.dumps(rest)) + (0 if place in places else len(json.dumps(place)))
        if used > MAX_OPERATION_BYTES or len(kept) == _MAX_OPERATIONS:
            break
        places.add(place)
        kept.append(index)
    return [rows[index] for index in sorted(kept)]
