"""A figure: a measured number with its unit, its bound, and the direction that is better."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

from harness.errors import HarnessError

# JSON cannot hold these numbers: a stream spells them as strings.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

# better -> (the sign between value and bound, does value meet bound)
DIRECTIONS = {
    "lower": ("<=", lambda value, bound: value <= bound),
    "higher": (">=", lambda value, bound: value >= bound),
    "exact": ("==", lambda value, bound: value == bound),
}


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
        value = self.value if self.finite else _spelling(self.value)
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
            value=NON_FINITE[value] if isinstance(value, str) else value,
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


def _spelling(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
