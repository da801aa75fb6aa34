"""What must hold between the exporters: of one model, they make artifacts that compute alike."""

import pytest

from harness.checks.agreement import agreement_with

pytestmark = pytest.mark.both_exporters


def test_both_exporters_agree(judge, subjects, fixture_name, mode, runtime):
    """Ours is the subject; ExecuTorch's is made when it is not in the cache."""
    judge(agreement_with(lambda: subjects.of_executorch(fixture_name, mode)), runtime)
