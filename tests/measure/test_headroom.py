"""A figure with a bound is judged by the room that the base left, above the noise."""

import math

import pytest

from harness.measure.verdicts import figure_margin, figure_verdict
from harness.results import Figure


def verdict(base, head, overrides=None):
    return figure_verdict(base, head, figure_margin("x", base, overrides or {}))


def error(value, bound=1e-5, floor=1e-6):
    return Figure(value, bound=bound, floor=floor)


def sqnr(value, bound=88.0, floor=126.0):
    return Figure(value, "dB", bound, "higher", floor=floor)


@pytest.mark.parametrize(
    ("base", "head", "wanted"),
    [
        (error(1e-12), error(1.1e-12), "same"),  # 10 %, far below the noise
        (error(0.0), error(9e-7), "same"),
        (error(2e-7), error(4e-7), "same"),
        (error(2e-7), error(4e-6), "regression"),  # 20 times
        (error(9e-6), error(9.9e-6), "same"),  # most of the room that is left, but noise
        (error(9e-6), error(1.01e-5), "regression"),  # over the bound
        (error(5e-6, floor=1e-7), error(6.3e-6, floor=1e-7), "regression"),  # 26 % of the room
        (error(5e-6, floor=1e-7), error(6.2e-6, floor=1e-7), "same"),  # 24 %
        (error(6.3e-6, floor=1e-7), error(4e-6, floor=1e-7), "better"),
        (error(0.5, 1.0, None), error(0.63, 1.0, None), "regression"),
        (error(0.1, 1.0, None), error(0.3, 1.0, None), "same"),
        (sqnr(136.3), sqnr(126.4), "same"),  # both as good as noise allows
        (sqnr(136.3), sqnr(110.0), "regression"),  # 26 dB: 20 times the error
        (sqnr(110.0), sqnr(104.0), "regression"),
        (sqnr(110.0), sqnr(108.0), "same"),
        (sqnr(90.0), sqnr(87.0), "regression"),
        (sqnr(104.0), sqnr(120.0), "better"),
    ],
)
def test_room_and_noise_decide(base, head, wanted):
    assert verdict(base, head)[0] == wanted


def test_the_reason_states_the_share_the_bound_and_what_is_tolerated():
    _, reason = verdict(error(2e-7), error(4e-6))
    assert reason == "takes 39% of the room to its bound, 1e-05; 25 % is tolerated"


@pytest.mark.parametrize(
    ("base", "head", "wanted"),
    [
        (error(2e-3, 6e-3, 3e-3), error(2e-3, 5e-3, 2.5e-3), "same"),
        (error(2e-3, 6e-3, 3e-3), error(2e-3, 8e-3, 4e-3), "same"),  # measured bounds move
        (error(2e-3, 6e-3, 3e-3), error(2e-3, 1.3e-2, 6.5e-3), "changed"),
        (error(2e-7), error(2e-7, bound=1e-4), "changed"),
        (error(2e-7), error(2e-7, bound=None), "changed"),
        (error(2e-7, bound=None), error(4e-7), "same"),  # of an older run, which had none
        (error(2e-7, bound=None, floor=None), error(4e-6), "regression"),
        (error(2e-7, bound=None), error(3e-7, bound=None), "regression"),  # by its margin
        (error(math.nan), error(math.inf), "failing"),
        (sqnr(130.0), sqnr(130.0, bound=80.0), "changed"),
        (sqnr(130.0), sqnr(130.0, bound=83.0), "same"),
    ],
)
def test_bounds_that_differ_or_are_missing(base, head, wanted):
    assert verdict(base, head)[0] == wanted


def test_a_percentage_of_ones_own_replaces_the_room():
    assert verdict(error(2e-7), error(3e-7), {"x": 20})[0] == "regression"
    assert verdict(error(2e-7), error(2.2e-7), {"x": 20})[0] == "same"


@pytest.mark.parametrize(
    ("better", "heads"),
    [
        ("lower", {10.5: "same", 19.0: "unjudged", 21.0: "regression", 8.0: "better"}),
        ("higher", {9.5: "same", 5.5: "unjudged", 4.5: "regression", 12.0: "better"}),
    ],
)
def test_times_of_two_sessions_regress_by_a_factor_of_two(better, heads):
    for value, wanted in heads.items():
        base, head = (Figure(v, "ms", better=better) for v in (10.0, value))
        assert verdict(base, head)[0] == wanted
        assert verdict(base, head, {"x": 10})[0] == wanted.replace("unjudged", "regression")


@pytest.mark.parametrize(
    ("base", "head", "wanted"),
    [
        (error(0.3), error(0.5), "failing"),
        (error(0.3), error(0.7), "regression"),
        (error(0.3), error(9e-6), "better"),
        (sqnr(20.0), sqnr(15.0), "failing"),
        (sqnr(20.0), sqnr(13.0), "regression"),
    ],
)
def test_what_missed_its_bound_before_may_not_become_twice_as_bad(base, head, wanted):
    assert verdict(base, head)[0] == wanted
