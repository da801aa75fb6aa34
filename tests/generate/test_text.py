"""Greedy text equals the argmax of a full recomputation, and generation names its end's reason."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.generate import generate
from tests.generate.eager_llama import EagerModel, eager_model

CONTEXT = 15
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(params=["single", "multifunction"])
def model(request: pytest.FixtureRequest) -> EagerModel:
    return eager_model(request.param, 4, CONTEXT)


def test_greedy_tokens_equal_full_recomputation(model: EagerModel) -> None:
    produced = list(generate(model.session(), PROMPT, 8))
    assert [step.token for step in produced] == model.recomputed(PROMPT, 8)
    assert [step.finish for step in produced] == [None] * 7 + ["max_new_tokens"]
    assert all(step.seconds > 0 for step in produced)


def test_generation_ends_at_the_last_context_position(model: EagerModel) -> None:
    produced = list(generate(model.session(), PROMPT, 100))
    # Positions 0..14 are fed; position 14 predicts the last possible token.
    expected = model.recomputed(PROMPT, CONTEXT - len(PROMPT) + 1)
    assert [step.token for step in produced] == expected
    assert produced[-1].finish == "context"


def test_a_prompt_that_fills_the_context_yields_one_token(model: EagerModel) -> None:
    prompt = [*PROMPT, *PROMPT, *PROMPT]
    produced = list(generate(model.session(), prompt, 5))
    assert [step.token for step in produced] == model.recomputed(prompt, 1)
    assert produced[-1].finish == "context"


def test_a_stop_token_ends_generation(model: EagerModel) -> None:
    expected = model.recomputed(PROMPT, 8)
    stop = expected[3]
    produced = list(generate(model.session(), PROMPT, 8, stop_tokens={stop}))
    assert [step.token for step in produced] == expected[: expected.index(stop) + 1]
    assert produced[-1].finish == "stop_token"


def test_the_sampler_chooses(model: EagerModel) -> None:
    produced = generate(model.session(), PROMPT, 3, sampler=lambda logits: 7)
    assert [step.token for step in produced] == [7, 7, 7]


@pytest.mark.parametrize("prompt", [[], [1] * (CONTEXT + 1)])
def test_a_prompt_that_cannot_be_fed_is_an_error(model: EagerModel, prompt: list[int]) -> None:
    with pytest.raises(HarnessError):
        next(generate(model.session(), prompt, 1))
