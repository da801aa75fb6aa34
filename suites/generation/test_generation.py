"""Requirements on generation: sequences of every length, split, order and end."""

from functools import partial

import pytest

from harness.checks import Check, artifact_checks
from harness.checks.run import defined_in
from harness.fixtures.subjects import tokenizer_of
from harness.subject import Subject, language_model
from harness.suites.conformance.cases import Judge
from harness.suites.conformance.subjects import row_of
from harness.suites.generation import sequences
from harness.suites.generation.order import any_order
from harness.suites.generation.prompts import prompts

OF_ARTIFACTS = ("owners", "roles", "cache-rows")
OF_EXECUTION = ("residues", "token-ids", "greedy")


@pytest.mark.parametrize("name", OF_ARTIFACTS)
def test_contract(judge: Judge, name: str) -> None:
    judge(artifact_checks()[name])


@pytest.mark.parametrize("name", OF_EXECUTION)
def test_lengths_and_ids(judge: Judge, name: str, runtime: str) -> None:
    judge(artifact_checks()[name], runtime)


@pytest.mark.parametrize("check", defined_in(sequences).values(), ids=lambda check: check.name)
def test_sequences(judge: Judge, check: Check[Subject], runtime: str) -> None:
    judge(check, runtime)


@pytest.mark.tokenized
def test_special_tokens(judge: Judge, fixture_name: str, runtime: str) -> None:
    judge(sequences.special_tokens(tokenizer_of(row_of(fixture_name))), runtime)


@pytest.mark.tokenized
def test_prompts(judge: Judge, fixture_name: str, runtime: str) -> None:
    judge(prompts(tokenizer_of(row_of(fixture_name))), runtime)


def test_any_order(judge: Judge, pytestconfig: pytest.Config, runtime: str) -> None:
    """Prompts, chunks, single tokens, resets and rewinds give what the oracle gives."""
    find = partial(any_order, steps=pytestconfig.getoption("steps"))
    judge(Check("any-order", find, (language_model,), takes_runtime=True), runtime)
