"""Contexts shorter than a prompt and its decode steps: the checks shorten both."""

from dataclasses import replace

import pytest

from fixtures.cache import exported, fixture
from harness.checks import CHECKS
from harness.results import case_from_findings
from harness.subject import Subject


@pytest.mark.parametrize(("input_len", "context"), [(1, 8), (16, 20)])
def test_every_check_applies_to_a_short_context(input_len, context):
    model = fixture("tiny")
    options = replace(model.options, input_len=input_len, max_context_len=context)
    subject = Subject(exported("tiny", options), model.checkpoint, model.params, options)
    for name, check in CHECKS.items():
        if not check.inapplicable(subject):
            runtime = "mil:widen" if check.takes_runtime else None
            case = case_from_findings(check.findings(subject, runtime), suite="s", check=name)
            assert case.outcome == "pass", case.reason
