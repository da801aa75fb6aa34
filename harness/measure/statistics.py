"""Whether head is slower than base: a sign-flip test that is repeated while blocks are added.

A block has two sessions of base and two of head, which take their steps in turn: base, head, head,
base, or the same with the sides exchanged, so that a steady drift cancels out. It gives a log-ratio
log(head / base). The two sessions of base come from two loads, and their log-ratio is the control:
it shows what a second load of one artifact differs by.

If head were base, each log-ratio would be as likely to have the other sign. The test therefore
compares the sum of signed ranks with the sums that all flips of the signs give (Wilcoxon's
signed-rank test). It assumes no distribution of times, and a block that another process disturbed
counts as one rank, however large its log-ratio is. The ratios that the test does not reject are an
interval, whose ends are averages of two log-ratios (Hodges and Lehmann).

Looking again after more blocks gives noise another chance. Look number k therefore spends only
1 / (k (k + 1)) of the error that is allowed. These shares sum to 1: the true ratio is inside the
intervals of all looks together with the stated confidence, however many looks there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

FIRST_LOOK = 12  # blocks; fewer cannot decide at the usual error
BLOCKS_PER_LOOK = 4
MIN_BLOCKS_OF_RATE = 4  # before the time of a block is known
ALLOCATOR_BYTES = 1 << 20  # a smaller difference between two peaks of memory means nothing

LOAD_DETECT, LOAD_TOLERATE = 0.2, 0.05  # at least
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Two times of each side, in any unit; those of base come from two loads."""

    base: tuple[float, float]
    head: tuple[float, float]

    def __post_init__(self) -> None:
        for time in (*self.base, *self.head):
            if not (math.isfinite(time) and time > 0):
                raise HarnessError(f"A time is {time}: it must be positive and finite")

    @property
    def log_ratio(self) -> float:
        """The logarithm of head / base, of the geometric means."""
        return math.log(self.head[0] / self.base[0] * (self.head[1] / self.base[1])) / 2

    @property
    def control(self) -> float:
        """The logarithm of base's second load / its first load."""
        return math.log(self.base[1] / self.base[0])


@dataclass(frozen=True)
class Goal:
    """What a comparison must find, what it tolerates, and how often it may be wrong.

    A head that is slower by `detect` must not be called "same", one that is slower by less than
    `tolerate` must not be called "slower". A verdict is wrong with a probability of at most
    `error`. Both sizes are shares of base: 0.03 is 3 %. Timing ends after `seconds` at the latest.

    Raises HarnessError unless 0 < tolerate < detect < 1, 0 < error < 1 and seconds > 0.
    """

    detect: float = 0.03
    tolerate: float = 0.01
    error: float = 0.02
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.tolerate < self.detect < 1:
            raise HarnessError(
                f"A slowdown of {100 * self.detect:.3g} % is to be found and one of "
                f"{100 * self.tolerate:.3g} % is tolerated: give numbers between 0 and 100 %, "
                "and tolerate less than you want to find"
            )
        if not 0 < self.error < 1:
            raise HarnessError(f"The error is {self.error:.3g}: it must lie between 0 and 1")
        if not 0 < self.seconds < math.inf:
            raise HarnessError(f"{self.seconds} seconds of timing were asked for: give more than 0")

    @property
    def of_load(self) -> Goal:
        """The goal of a load, which is one long step: it is seldom undisturbed."""
        detect, tolerate = max(self.detect, LOAD_DETECT), max(self.tolerate, LOAD_TOLERATE)
        return replace(self, detect=detect, tolerate=tolerate)


@dataclass(frozen=True)
class Estimate:
    """A ratio, and the interval that holds the true one with the goal's confidence."""

    ratio: float
    low: float
    high: float

    def is_above(self, limit: float) -> bool:
        """Whether the true ratio is surely above 1 + `limit`."""
        return self.low > 1 + limit

    def is_below(self, limit: float) -> bool:
        """Whether the true ratio is surely below 1 / (1 + `limit`)."""
        return self.high < 1 / (1 + limit)

    def is_within(self, limit: float) -> bool:
        """Whether the true ratio is surely between 1 / (1 + `limit`) and 1 + `limit`."""
        return self.low > 1 / (1 + limit) and self.high < 1 + limit


@dataclass(frozen=True)
class Comparison:
    """The verdict "faster", "same", "slower" or "inconclusive", why, and its numbers.

    `head` estimates head / base, `control` base's second load / its first. `p` is the probability
    of so uneven signs if head were base, at the one look that decided. `blocks` is their number.
    """

    verdict: str
    reason: str
    head: Estimate
    control: Estimate
    p: float
    blocks: int

    def numbers(self) -> dict[str, float | list[float]]:
        """Return what the verdict rests on, for JSON, without what is not finite."""
        rows: dict[str, list[float]] = {
            "ratio": [self.head.ratio],
            "interval": [self.head.low, self.head.high],
            "p": [self.p],
            "samples": [self.blocks],
            "control": [self.control.ratio],
            "control interval": [self.control.low, self.control.high],
        }
        finite = {name: row for name, row in rows.items() if all(map(math.isfinite, row))}
        return {name: row if len(row) > 1 else row[0] for name, row in finite.items()}


def compare(blocks: Sequence[Block], goal: Goal) -> Comparison:
    """Judge blocks in the order in which they were timed; the first look that decides counts.

    "slower" and "faster": the interval lies beyond what the goal tolerates, and the ratio is
    farther from 1 than the control's. "same": the interval lies within what must be found.
    "inconclusive": no look decided, or base surely differs from itself by more than is tolerated.

    Raises HarnessError for no blocks.
    """
    if not blocks:
        raise HarnessError("There are no times to compare: time base and head in blocks")
    looks = range(FIRST_LOOK, len(blocks) + 1, BLOCKS_PER_LOOK)
    for number, count in enumerate(looks, 1):
        found = _look(blocks[:count], goal, number)
        if found.verdict != "inconclusive":
            break
    else:
        if not looks:
            found_count = f"{len(blocks)} {'block is' if len(blocks) == 1 else 'blocks are'}"
            reason = f"{found_count} too few, {FIRST_LOOK} are needed{_more(goal)}"
            found = replace(_look(blocks, goal, 1), verdict="inconclusive", reason=reason)
    return found


def is_look(blocks: int) -> bool:
    """Whether `compare` may decide after this many blocks."""
    return blocks >= FIRST_LOOK and (blocks - FIRST_LOOK) % BLOCKS_PER_LOOK == 0


def reaches_next_look(took: Sequence[float], left: float) -> bool:
    """Whether the blocks up to the next look fit into the seconds that are left."""
    if len(took) < MIN_BLOCKS_OF_RATE:
        return left > 0 or not took
    past = len(took) - FIRST_LOOK
    missing = -past if past < 0 else BLOCKS_PER_LOOK - past % BLOCKS_PER_LOOK
    return median(took) * missing <= left


def _look(blocks: Sequence[Block], goal: Goal, number: int) -> Comparison:
    """Judge at look `number`, with its share of the goal's error."""
    tail = goal.error / (number * (number + 1)) / 2
    ratios = np.array([block.log_ratio for block in blocks])
    head = estimate(ratios, tail)
    control = estimate(np.array([block.control for block in blocks]), tail)
    verdict, reason = _verdict(head, control, goal)
    return Comparison(verdict, reason, head, control, sign_flip_p(ratios), len(blocks))


def _verdict(head: Estimate, control: Estimate, goal: Goal) -> tuple[str, str]:
    """Return a verdict and its reason."""
    if control.is_above(goal.tolerate) or control.is_below(goal.tolerate):
        return "inconclusive", f"base differs from itself by {control.ratio - 1:+.1%}"
    if head.is_above(goal.tolerate) or head.is_below(goal.tolerate):
        if abs(math.log(head.ratio)) <= abs(math.log(control.ratio)):
            return "inconclusive", f"{head.ratio - 1:+.1%}, which is less than two loads differ by"
        return ("slower" if head.ratio > 1 else "faster"), f"by {head.ratio - 1:+.1%}"
    if head.is_within(goal.detect):
        return "same", f"within {goal.detect:.2g}"
    return "inconclusive", f"the times are too noisy{_more(goal)}"


def _more(goal: Goal) -> str:
    """Return the hint on how to get more blocks."""
    return f": give more time, such as --seconds {5 * goal.seconds:g}"


def estimate(log_ratios: Floats, tail: float) -> Estimate:
    """Return the ratio that splits the signed ranks evenly, and those that the test rejects not.

    The true ratio is below the interval with a probability of at most `tail`, and above it, too.
    With too few log-ratios for that, the interval has no ends.
    """
    averages = walsh_averages(log_ratios)
    outside = int(np.searchsorted(_rank_sum_distribution(len(log_ratios)), tail, side="right"))
    low, high = (averages[outside - 1], averages[-outside]) if outside else (-np.inf, np.inf)
    return Estimate(*(float(np.exp(value)) for value in (np.median(averages), low, high)))


def sign_flip_p(log_ratios: Floats) -> float:
    """Return the share of sign flips whose signed ranks are at least as uneven as these.

    It is two-sided: twice the share of the flips that are as uneven to the same side.
    """
    averages = walsh_averages(log_ratios)
    fewer = int(min((averages >= 0).sum(), (averages <= 0).sum()))
    return min(1.0, 2 * float(_rank_sum_distribution(len(log_ratios))[fewer]))


def low_quartile(samples: Sequence[float]) -> float:
    """Return what a quarter of the samples do not exceed: other work only adds time."""
    return float(np.quantile(samples, 0.25))


def walsh_averages(log_ratios: Floats) -> Floats:
    """Return the average of each pair of values, and each value, in ascending order.

    The number of those above 0 is the sum of the ranks, by magnitude, of the positive values.
    """
    first, second = np.triu_indices(len(log_ratios))
    return np.sort((log_ratios[first] + log_ratios[second]) / 2)


@lru_cache
def _rank_sum_distribution(count: int) -> Floats:
    """Return the share of the sign flips of `count` values whose positive ranks sum to at most i.

    The array has an item for each i from 0 to the sum of all ranks.
    """
    shares = np.ones(1)
    for rank in range(1, count + 1):
        without = np.pad(shares, (0, rank))
        shares = (without + np.pad(shares, (rank, 0))) / 2
    return np.cumsum(shares)


def memory_verdict(base: Sequence[float], head: Sequence[float], goal: Goal) -> Comparison:
    """Judge the samples of two peaks, in bytes: "smaller", "same", "larger" or "inconclusive"."""
    found = Estimate(min(head) / min(base), min(head) / max(base), max(head) / min(base))
    control = Estimate(1.0, min(base) / max(base), max(base) / min(base))
    change = f"by {found.ratio - 1:+.1%}"
    if max(*base, *head) - min(*base, *head) <= ALLOCATOR_BYTES:
        verdict, reason = "same", "within 1 MiB"
    elif found.is_above(goal.tolerate):
        verdict, reason = "larger", change
    elif found.is_below(goal.tolerate):
        verdict, reason = "smaller", change
    elif found.is_within(goal.detect):
        verdict, reason = "same", f"within {goal.detect:.2g}"
    else:
        verdict, reason = "inconclusive", "the peaks scatter too much"
    return Comparison(verdict, reason, found, control, math.nan, len(base))
