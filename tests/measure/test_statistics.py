"""Verdicts on synthetic times, and the test behind them beside scipy's."""

import numpy as np
import pytest
from scipy import stats

from harness.errors import HarnessError
from harness.measure.statistics import (
    BLOCKS_PER_LOOK,
    FIRST_LOOK,
    Block,
    Goal,
    compare,
    estimate,
    is_look,
    sign_flip_p,
)

GOAL = Goal(detect=0.03, tolerate=0.01)


def blocks(ratio, count=40, noise=0.005, seed=0, control=1.0):
    generator = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(generator.normal(0, 0.05, count)))
    times = drift[:, None] * np.exp(generator.normal(0, noise, (count, 4)))
    times *= [1, control, ratio, ratio]
    return [Block((a, b), (c, d)) for a, b, c, d in times.tolist()]


def signed_ranks(values, axis=-1):
    ranks = stats.rankdata(np.abs(values), axis=axis)
    return (np.sign(values) * ranks).sum(axis=axis)


@pytest.mark.parametrize("seed", range(8))
def test_p_is_that_of_scipys_permutation_test(seed):
    values = np.random.default_rng(seed).standard_t(2, size=11) + seed / 8
    found = stats.permutation_test(
        (values,), signed_ranks, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip_p(values) == pytest.approx(found.pvalue)


def test_no_difference_at_all_has_p_1():
    assert sign_flip_p(np.zeros(12)) == 1.0
    assert sign_flip_p(np.array([1.0, -1.0] * 6)) == 1.0


@pytest.mark.parametrize("count", [8, 12, 30])
def test_the_interval_holds_the_ratios_that_scipys_signed_rank_test_keeps(count):
    values = np.random.default_rng(count).normal(0.02, 0.01, count)
    found = estimate(values, tail := 0.01)

    def p(ratio, alternative):
        shifted = values - np.log(ratio)
        return stats.wilcoxon(shifted, alternative=alternative, method="exact").pvalue

    assert p(found.low * (1 - 1e-9), "greater") <= tail < p(found.low * (1 + 1e-9), "greater")
    assert p(found.high * (1 + 1e-9), "less") <= tail < p(found.high * (1 - 1e-9), "less")
    assert found.low < found.ratio < found.high


def test_too_few_values_have_an_open_interval():
    assert (estimate(np.ones(6), 0.01).low, estimate(np.ones(6), 0.01).high) == (0.0, np.inf)


@pytest.mark.parametrize("seed", range(10))
def test_the_verdict_names_the_direction(seed):
    slower = compare(blocks(1.04, seed=seed), GOAL)
    assert slower.verdict == "slower" and slower.head.ratio == pytest.approx(1.04, rel=0.01)
    assert slower.head.low > 1.01 and slower.p < 0.01
    assert compare(blocks(1 / 1.04, seed=seed), GOAL).verdict == "faster"
    same = compare(blocks(1.0, seed=seed), GOAL)
    assert same.verdict == "same" and 1 / 1.03 < same.head.low < 1 < same.head.high < 1.03


def test_a_certain_difference_below_what_is_tolerated_is_the_same():
    found = compare(blocks(1.008, noise=0.0005), GOAL)
    assert found.p < 0.01 and found.verdict == "same"
    assert compare(blocks(1.008, noise=0.0005), Goal(0.03, 0.005)).verdict == "slower"


def test_what_must_be_found_is_not_called_the_same():
    """With a tolerance of 4 %, neither verdict is sure of a head that is slower by 3 %."""
    assert compare(blocks(1.03, noise=0.001), Goal(0.05, 0.04)).verdict == "same"
    assert compare(blocks(1.045, noise=0.01), Goal(0.05, 0.04)).verdict == "inconclusive"


def test_noise_decides_nothing():
    found = compare(blocks(1.0, noise=0.5), GOAL)
    reason = "the times are too noisy: give more time, such as --seconds 300"
    assert (found.verdict, found.reason) == ("inconclusive", reason)


def test_one_disturbed_block_decides_nothing_either_way():
    disturbed = blocks(1.0)
    disturbed[3] = Block((1.0, 1.0), (50.0, 50.0))
    assert compare(disturbed, GOAL).verdict == "same"


def test_few_blocks_decide_nothing():
    found = compare(blocks(1.5, count=FIRST_LOOK - 1), GOAL)
    assert found.verdict == "inconclusive" and f"{FIRST_LOOK} are needed" in found.reason
    assert found.head.ratio == pytest.approx(1.5, rel=0.01)


def test_a_control_that_moves_decides_nothing():
    found = compare(blocks(1.05, control=1.08), GOAL)
    assert found.verdict == "inconclusive" and "base differs from itself by" in found.reason


def test_a_difference_no_larger_than_the_controls_decides_nothing():
    # The control's steps are uneven enough to be no sure difference, and larger than head's.
    uneven = [1.2, 1.2, 1.2, 0.9] * 10
    unsteady = [
        Block((1.0, c), (r * c**0.5, r * c**0.5))
        for c, r in zip(uneven, np.linspace(1.02, 1.04, 40), strict=True)
    ]
    found = compare(unsteady, GOAL)
    assert found.head.is_above(0.01) and found.control.ratio > found.head.ratio
    assert found.verdict == "inconclusive"


def test_the_first_look_that_decides_counts():
    early = blocks(1.05, count=FIRST_LOOK, noise=0.001)
    late = blocks(1 / 1.05, count=4 * FIRST_LOOK, noise=0.001)
    assert compare(early + late, GOAL) == compare(early, GOAL)
    assert [n for n in range(30) if is_look(n)] == [*range(FIRST_LOOK, 30, BLOCKS_PER_LOOK)]


def test_looking_often_gives_no_more_false_alarms_than_are_allowed():
    """Head is slower by what is tolerated: each "slower" is wrong. Equal errors are too many."""
    looks = range(FIRST_LOOK, 60, BLOCKS_PER_LOOK)
    generator = np.random.default_rng(1)
    ours = naive = 0
    for _ in range(200):
        log_ratios = np.log(1.1) + generator.standard_t(3, size=60) * 0.05
        given = [Block((1.0, 1.0), (r, r)) for r in np.exp(log_ratios).tolist()]
        ours += compare(given, Goal(detect=0.8, tolerate=0.1, error=0.2)).verdict == "slower"
        naive += any(estimate(log_ratios[:n], 0.1).low > 1.1 for n in looks)
    assert ours <= 20, "an error of 0.2 has two sides"
    assert naive > 40


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_times_are_refused(time):
    with pytest.raises(HarnessError, match="must be positive and finite"):
        Block((1.0, 1.0), (1.0, time))
    with pytest.raises(HarnessError, match="no times to compare"):
        compare([], GOAL)


@pytest.mark.parametrize(
    "numbers", [(0.01, 0.03, 0.01), (0.03, 0.03, 0.01), (1.5, 0.1, 0.01), (0.03, 0, 0.01)]
)
def test_bad_goals_are_refused(numbers):
    with pytest.raises(HarnessError, match="%, and tolerate less than you want to find"):
        Goal(*numbers)
    with pytest.raises(HarnessError, match="The error is 2"):
        Goal(error=2)
