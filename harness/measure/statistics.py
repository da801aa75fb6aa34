"""Whether head is slower than base: a paired sign-flip permutation test with an A/A control.

Base and head are timed in pairs, in ABBA order, in one session. Each pair gives a log-ratio
log(head / base). If the two were equally fast, each sign would be as likely as the other. So the
test compares the mean with the means of the same log-ratios after all flips of their signs, or
after many random ones. It assumes no distribution of times. The control times base against itself:
if that shows a difference, the machine was not steady, and the test is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

EXACT_UP_TO = 14  # pairs whose 2**n flips are all tried
RANDOM_FLIPS = 20_000
# Flipped signs held in memory at once.
CHUNK = 1 << 21

Pairs = Sequence[tuple[float, float]]
# A timed call does the work, checks its own answer and returns seconds.
Timed = Callable[[], float]


@dataclass(frozen=True)
class Samples:
    """Pairs of times in seconds: `pairs` of (base, head), `control` of (base, base)."""

    pairs: tuple[tuple[float, float], ...]
    control: tuple[tuple[float, float], ...]


def sample_in_abba_order(base: Timed, head: Timed, pairs: int, warmup: int = 1) -> Samples:
    """Time `pairs` pairs of each, in blocks of base head head base, base base base base.

    A slow drift (heat, another process) then affects both sides alike. The control's blocks lie
    between the others, so that they see the same machine. Warm-up calls are not kept.

    Raises HarnessError unless `pairs` is even and at least 2.
    """
    if pairs < 2 or pairs % 2:
        raise HarnessError(f"{pairs} pairs were asked for: ABBA order needs an even number")
    for _ in range(warmup):
        base(), head()
    compared: list[tuple[float, float]] = []
    control: list[tuple[float, float]] = []
    for _ in range(pairs // 2):
        compared += _block(base, head)
        control += _block(base, base)
    return Samples(tuple(compared), tuple(control))


def _block(a: Timed, b: Timed) -> list[tuple[float, float]]:
    """Return two (a, b) pairs, called in the order a b b a."""
    first_a, first_b = a(), b()
    second_b, second_a = b(), a()
    return [(first_a, first_b), (second_a, second_b)]


@dataclass(frozen=True)
class Comparison:
    """The verdict of timing in pairs: "faster", "same", "slower" or "inconclusive", and why.

    `ratio` is the geometric mean of head / base, `control_ratio` that of base / base; `p`
    the probability of a mean at least this far from 1 if head were base.
    """

    verdict: str
    reason: str
    ratio: float
    p: float
    control_ratio: float
    pairs: int


def compare(
    pairs: Pairs, control: Pairs, *, margin: float = 0.03, alpha: float = 0.01
) -> Comparison:
    """Judge `(base, head)` pairs of times with a control of `(base, base)` pairs.

    `slower` and `faster`: the sign-flip test rejects "no difference" at `alpha`, and the
    mean ratio is off 1 by more than `margin` and by more than the control's. `same`: two
    one-sided tests at `alpha` show that the ratio is within the margin. Otherwise, and whenever
    the control shows a difference or there are too few pairs, `inconclusive`.

    Raises HarnessError for no pairs, a time that is not positive and finite, and a margin or an
    alpha outside (0, 1).
    """
    for name, value in (("margin", margin), ("alpha", alpha)):
        if not 0 < value < 1:
            raise HarnessError(f"The {name} is {value}: it must lie between 0 and 1")
    ratios, control_ratios = log_ratios(pairs, "pairs"), log_ratios(control, "control")
    limit = math.log1p(margin)
    p, mean = p_two_sided(ratios), float(ratios.mean())
    control_mean = float(control_ratios.mean())
    control_moved = p_two_sided(control_ratios) < alpha and abs(control_mean) > limit / 2
    too_few = _too_few(min(len(ratios), len(control_ratios)), alpha)
    if too_few:
        verdict, reason = "inconclusive", too_few
    elif control_moved:
        verdict, reason = "inconclusive", "base differs from itself: the machine was not steady"
    elif p < alpha and abs(mean) > max(limit, abs(control_mean)):
        verdict = "slower" if mean > 0 else "faster"
        reason = f"by {math.expm1(mean):+.1%}, p = {p:.2g}"
    elif max(p_above(ratios + limit), p_above(limit - ratios)) < alpha:
        verdict, reason = "same", f"within {margin:.1%}"
    else:
        verdict, reason = "inconclusive", "too noisy to say: time more pairs"
    return Comparison(verdict, reason, math.exp(mean), p, math.exp(control_mean), len(ratios))


def log_ratios(pairs: Pairs, name: str) -> NDArray[np.float64]:
    """Return log(second / first) of each pair, float64 [pairs].

    Raises HarnessError for no pairs, and for a time that is not positive and finite.
    """
    times = np.asarray(pairs, dtype=np.float64)
    if times.ndim != 2 or times.shape[1] != 2:
        raise HarnessError(f"There are no {name} of times to compare: time base and head in pairs")
    if not (np.isfinite(times) & (times > 0)).all():
        raise HarnessError(f"One of the {name} has a time that is not positive and finite")
    ratios: NDArray[np.float64] = np.log(times[:, 1] / times[:, 0])
    return ratios


def p_two_sided(ratios: NDArray[np.float64]) -> float:
    """Return the share of sign flips whose mean is at least as far from 0 as that of `ratios`."""
    return _share_of_flips(ratios, two_sided=True)


def p_above(ratios: NDArray[np.float64]) -> float:
    """Return the share of sign flips whose mean is at least that of `ratios`.

    It is small when the mean of `ratios` is above 0.
    """
    return _share_of_flips(ratios, two_sided=False)


def _share_of_flips(ratios: NDArray[np.float64], two_sided: bool) -> float:
    """Try all flips when there are few, else seeded random ones and the flip of no sign."""
    count = len(ratios)
    observed = abs(ratios.sum()) if two_sided else ratios.sum()
    # Flips that only reorder the sum must count as equal to it.
    threshold = observed - 1e-12 * np.abs(ratios).sum()
    total = 1 << count if count <= EXACT_UP_TO else RANDOM_FLIPS
    generator = np.random.default_rng(0)
    extreme = 0
    step = max(1, CHUNK // count)
    for start in range(0, total, step):
        size = min(step, total - start)
        if count <= EXACT_UP_TO:
            negative = (np.arange(start, start + size)[:, None] >> np.arange(count)) & 1
        else:
            negative = generator.integers(0, 2, (size, count), dtype=np.int8)
        sums = ratios.sum() - 2.0 * (negative @ ratios)
        extreme += int(((np.abs(sums) if two_sided else sums) >= threshold).sum())
    if count <= EXACT_UP_TO:
        return extreme / total
    return (extreme + 1) / (total + 1)


def _too_few(pairs: int, alpha: float) -> str:
    """Return why so few pairs decide nothing, or "": the least p of n pairs is 2 / 2**n."""
    needed = math.floor(math.log2(2 / alpha)) + 1
    if pairs >= needed:
        return ""
    return f"{pairs} pairs cannot decide at p < {alpha:g}: time at least {needed}"
