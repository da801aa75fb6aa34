from __future__ import annotations

import math

import pytest
import torch

from harness.errors import HarnessError
from harness.generate import greedy, make_sampler

LOGITS = torch.tensor([math.log(p) for p in (0.1, 0.5, 0.15, 0.25)], dtype=torch.float64)


def counts(temperature: float, top_p: float, n: int = 4000) -> list[float]:
    sample = make_sampler(temperature, top_p, seed=0)
    drawn = torch.tensor([sample(LOGITS) for _ in range(n)])
    return (torch.bincount(drawn, minlength=4) / n).tolist()


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert greedy(torch.tensor([1.0, 3.0, 3.0, 2.0])) == 1


def test_greedy_does_not_round_fp64_logits() -> None:
    assert greedy(torch.tensor([1.0, 1.0 + 1e-15], dtype=torch.float64)) == 1


def test_temperature_zero_is_greedy() -> None:
    assert make_sampler(0.0, 0.1, seed=0) is greedy


def test_samples_follow_the_softmax() -> None:
    assert counts(1.0, 1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)


def test_temperature_two_flattens_as_the_square_root_does() -> None:
    roots = [math.sqrt(p) for p in (0.1, 0.5, 0.15, 0.25)]
    assert counts(2.0, 1.0) == pytest.approx([r / sum(roots) for r in roots], abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    assert counts(1.0, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)


def test_a_tiny_top_p_keeps_the_most_probable_token() -> None:
    assert counts(1.0, 1e-9, n=50) == [0, 1, 0, 0]


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert make_sampler(1e-300, 1.0, seed=0)(torch.tensor([60000.0, 50000.0])) == 0


def test_the_same_seed_draws_the_same_tokens() -> None:
    first, second, other = (make_sampler(1.0, 1.0, seed) for seed in (7, 7, 8))
    draws = [[sample(LOGITS) for _ in range(40)] for sample in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    with pytest.raises(HarnessError, match="1 of 3 logits are NaN or infinite"):
        make_sampler(temperature, 1.0, seed=0)(torch.tensor([1.0, bad, 0.0]))
