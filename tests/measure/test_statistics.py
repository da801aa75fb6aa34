"""Verdicts on synthetic times: a known difference, none, too few pairs, an unsteady machine."""

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.measure.statistics import compare, sample_in_abba_order


def pairs(ratio, count=30, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0, 0.2, count)
    return [(b, b * ratio * n) for b, n in zip(base, rng.lognormal(0, noise, count), strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_a_against_a_is_the_same(seed):
    assert compare(pairs(1.0, seed=seed), pairs(1.0, seed=seed + 100)).verdict == "same"


@pytest.mark.parametrize("seed", range(20))
def test_ten_percent_is_seen_both_ways(seed):
    control = pairs(1.0, seed=seed + 100)
    slower = compare(pairs(1.1, seed=seed), control)
    assert slower.verdict == "slower" and slower.ratio == pytest.approx(1.1, rel=0.01)
    assert compare(pairs(1 / 1.1, seed=seed), control).verdict == "faster"


def test_few_pairs_decide_nothing():
    found = compare(pairs(1.5, count=6), pairs(1.0, count=6))
    assert found.verdict == "inconclusive" and "time at least 8" in found.reason


def test_noise_is_not_called_the_same():
    assert compare(pairs(1.0, noise=0.5), pairs(1.0, seed=1)).verdict == "inconclusive"


def test_a_difference_that_is_certain_and_small_is_the_same():
    found = compare(pairs(1.01, noise=0.001), pairs(1.0, seed=1))
    assert found.p < 0.01 and found.verdict == "same"


@pytest.mark.parametrize("sign", [1, -1])
def test_not_shown_to_differ_is_not_shown_to_be_the_same(sign):
    # Mean log-ratio 0.03, standard deviation 0.1, 30 pairs: z = 1.6, and the margin is 0.0296.
    logs = sign * np.array([0.13, -0.07] * 15)
    found = compare([(1.0, ratio) for ratio in np.exp(logs)], pairs(1.0, seed=1))
    assert found.verdict == "inconclusive" and "too noisy" in found.reason


def test_a_difference_no_larger_than_the_controls_decides_nothing():
    unsteady = [(1.0, ratio) for ratio in np.exp([0.6, -0.4] * 15)]
    assert compare(pairs(1.05), unsteady).verdict == "inconclusive"


def test_a_control_that_moves_decides_nothing():
    found = compare(pairs(1.3), pairs(1.1, seed=1))
    assert found.verdict == "inconclusive" and "not steady" in found.reason


@pytest.mark.parametrize("times", [[], [(1.0, 0.0)], [(1.0, float("nan"))], [(1.0,)]])
def test_bad_times_are_refused(times):
    with pytest.raises(HarnessError):
        compare(times, pairs(1.0))


def test_calls_come_in_abba_order_with_a_control():
    order = []

    def timed(name):
        return lambda: order.append(name) or float(len(order))

    samples = sample_in_abba_order(timed("a"), timed("b"), pairs=2, warmup=0)
    assert order == list("abbaaaaa")
    assert samples.pairs == ((1.0, 2.0), (4.0, 3.0)) and len(samples.control) == 2
    order.clear()
    sample_in_abba_order(timed("a"), timed("b"), pairs=2, warmup=2)
    assert order == list("abab" + "abbaaaaa"), "each side is warm before its first time is kept"
    with pytest.raises(HarnessError, match="even number"):
        sample_in_abba_order(timed("a"), timed("b"), pairs=3)
