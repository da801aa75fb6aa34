"""What must hold of the exported bytes: no runtime is needed."""

import pytest

from harness.checks import CHECKS

ARTIFACT_CHECKS = [check for check in CHECKS.values() if not check.takes_runtime]


@pytest.mark.parametrize("check", ARTIFACT_CHECKS, ids=lambda check: check.name)
def test_artifact(judge, check):
    judge(check)
