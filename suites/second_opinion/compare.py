"""How far an executor's outputs are from the reference in fp64: the measure of each subject."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.suites.second_opinion.values import DTYPES


@dataclass(frozen=True)
class Measured:
    """The largest error of a finite value in units of the bound, and the first element beyond it.

    `problem` is empty when all elements agree.
    """

    error: float
    compared: int
    problem: str = ""


def measured(
    found: list[Tensor], wanted: list[Tensor], measure: str, bound: float, precision: str
) -> Measured:
    """Compare outputs with the reference by a subject's measure.

    - `ulp`: each element, in units in the last place of the rounded reference.
    - `exact`: each element, by its bits; a NaN is any NaN.
    - `relative`: each element, relative to the output's largest finite magnitude.

    NaN, infinities and their signs must be where the rounded reference has them, and, but for
    `relative`, so must the signs of zeros.
    """
    if len(found) != len(wanted):
        return Measured(0.0, 0, f"{len(found)} outputs, not {len(wanted)}")
    worst, compared, problems = 0.0, 0, []
    for number, (one, exact) in enumerate(zip(found, wanted, strict=True)):
        if one.shape != exact.shape:
            shapes = f"{list(one.shape)}, not {list(exact.shape)}"
            return Measured(worst, compared, f"output {number} has shape {shapes}")
        of_output = _of_output(one, exact, measure, bound, precision)
        worst, compared = max(worst, of_output.error), compared + of_output.compared
        problems += [of_output.problem] if of_output.problem else []
    return Measured(worst, compared, problems[0] if problems else "")


def _of_output(
    found: Tensor, exact: Tensor, measure: str, bound: float, precision: str
) -> Measured:
    found, exact = found.detach().flatten(), exact.detach().flatten().double()
    dtype = DTYPES[precision] if found.is_floating_point() else torch.float64
    rounded = exact.to(dtype).double()
    value = found.double()
    agree = (value == rounded) | (value.isnan() & rounded.isnan())
    if measure != "relative":
        agree &= (value != 0) | (value.signbit() == rounded.signbit())
    # beyond the largest number, both neighbours of the reference are right
    finite = value.isfinite() & rounded.isfinite()
    same_zero = (value != 0) | (rounded != 0) | (value.signbit() == rounded.signbit())
    comparable = finite & (same_zero if measure != "relative" else torch.ones_like(finite))
    error = _error(value, exact, rounded, measure, dtype)
    error = torch.where(comparable, error, torch.where(agree, 0.0, torch.inf))
    beyond = error > bound
    finite_error = error[error.isfinite()]
    worst = float(finite_error.max()) if len(finite_error) else 0.0
    if not bool(beyond.any()):
        return Measured(worst, len(value))
    place = int(beyond.nonzero()[0])
    told = f"{float(value[place]):.9g}, not {float(rounded[place]):.9g}, at element {place}"
    return Measured(worst, len(value), f"{told}; {int(beyond.sum())} of {len(value)} differ")


def _error(
    value: Tensor, exact: Tensor, rounded: Tensor, measure: str, dtype: torch.dtype
) -> Tensor:
    if measure == "exact":
        return torch.where(value == rounded, 0.0, torch.inf)
    difference = (value - exact).abs()
    if measure == "ulp":
        if dtype == torch.float64:  # whole numbers and truths
            return (value - rounded).abs()
        return difference / _spacing(rounded, dtype)
    largest = (
        exact[exact.isfinite()].abs().amax() if bool(exact.isfinite().any()) else exact.new_ones(())
    )
    return difference / largest.clamp_min(torch.finfo(dtype).tiny)


def _spacing(rounded: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance of a magnitude to the next larger one, in a dtype."""
    info = torch.finfo(dtype)
    magnitude = rounded.abs().clamp(info.smallest_normal, info.max)
    exponent = torch.frexp(magnitude).exponent - 1
    return torch.ldexp(torch.full_like(magnitude, info.eps), exponent)
