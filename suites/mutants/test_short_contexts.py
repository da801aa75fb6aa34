"""Contexts shorter than a prompt and its decode steps: the checks shorten both."""

from dataclasses import replace

import pytest

from harness.checks import artifact_checks
from harness.fixtures.cache import exported, fixture
from harness.subject import Subject
from harness.suites.mutants.judge import judged


@pytest.mark.parametrize(("input_len", "context"), [(1, 8), (16, 20)])
def test_every_check_applies_to_a_short_context(input_len: int, context: int) -> None:
    model = fixture("tiny")
    options = replace(model.options, input_len=input_len, max_context_len=context)
    subject = Subject(exported("tiny", options), model.checkpoint, model.params, options)
    for check in artifact_checks().values():
        if not check.inapplicable(subject):
            case = judged(subject, check)
            assert case.outcome == "pass", case.reason
