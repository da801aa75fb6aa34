"""The sign-flip test, compared with values computed by hand, and its rate of false alarms."""

import numpy as np
import pytest

from harness.measure.statistics import compare, p_above, p_two_sided


@pytest.mark.parametrize(
    ("ratios", "two_sided", "above"),
    [
        ([1.0, 1.0, 1.0], 2 / 8, 1 / 8),  # only +++ and --- are as far out
        ([1.0, 2.0, 3.0], 2 / 8, 1 / 8),
        ([1.0, -1.0], 4 / 4, 3 / 4),  # a sum of 0 is beaten or met by +-, -+ and ++
        ([-1.0, -1.0], 2 / 4, 4 / 4),
        ([0.0, 0.0], 1.0, 1.0),
    ],
)
def test_p_of_few_pairs_is_exact(ratios, two_sided, above):
    assert p_two_sided(np.array(ratios)) == two_sided
    assert p_above(np.array(ratios)) == above


def test_random_flips_agree_with_the_normal_distribution():
    # 400 log-ratios of +-1 with 230 up: z = 60 / sqrt(400) = 3, two-sided p = 0.0027.
    ratios = np.array([1.0] * 230 + [-1.0] * 170)
    assert p_two_sided(ratios) == pytest.approx(0.0027, abs=0.0015)


def test_random_flips_never_claim_certainty():
    # No flip but the two trivial ones is as far out, and random ones will not find those.
    assert 0 < p_two_sided(np.ones(60)) < 0.001


def test_a_difference_is_seldom_seen_where_there_is_none():
    generator = np.random.default_rng(3)
    verdicts = []
    for _ in range(200):
        times = np.exp(generator.normal(0, 0.1, (2, 12, 2)))
        verdicts.append(compare(times[0].tolist(), times[1].tolist()).verdict)
    assert verdicts.count("slower") + verdicts.count("faster") <= 6, "alpha is 1 %"


def test_a_control_of_too_few_pairs_controls_nothing():
    found = compare([(1.0, 1.5)] * 20, [(1.0, 1.0)] * 3)
    assert found.verdict == "inconclusive" and "3 pairs" in found.reason
