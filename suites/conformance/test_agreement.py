"""Requirements between the exporters: their artifacts of one model compute alike."""

import pytest

from harness.checks.agreement import agreement_with

pytestmark = pytest.mark.both_exporters


def test_both_exporters_agree(judge, subjects, fixture_name, mode, runtime):
    """Ours is the subject; ExecuTorch's is exported when the cache does not have it."""
    judge(agreement_with(lambda: subjects.of_executorch(fixture_name, mode)), runtime)
