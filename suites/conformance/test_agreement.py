"""Requirements between the exporters: their artifacts of one model compute alike."""

import pytest

from harness.checks.agreement import agreement_with

pytestmark = pytest.mark.other_exporters


def test_exporters_agree(judge, subjects, fixture_name, mode, runtime):
    """Hold the subject against the first ExecuTorch's export, which is made if it is not cached."""
    judge(agreement_with(lambda: subjects.of_first(fixture_name, mode)), runtime)
