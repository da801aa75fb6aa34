"""Requirements on execution: the artifact computes what its checkpoint computes."""

import pytest

from harness.checks import artifact_checks

EXECUTION_CHECKS = [check for check in artifact_checks().values() if check.takes_runtime]


@pytest.mark.parametrize("check", EXECUTION_CHECKS, ids=lambda check: check.name)
def test_execution(judge, check, runtime):
    judge(check, runtime)
