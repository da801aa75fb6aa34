"""Requirements on the exported bytes, which need no runtime."""

import pytest

from harness.checks import Check, artifact_checks, value_checks
from harness.subject import Subject
from harness.suites.conformance.cases import Judge

ARTIFACT_CHECKS = [check for check in artifact_checks().values() if not check.takes_runtime]


@pytest.mark.parametrize("check", ARTIFACT_CHECKS, ids=lambda check: check.name)
def test_artifact(judge: Judge, check: Check[Subject]) -> None:
    judge(check)


@pytest.mark.valued
def test_reference_weights(judge: Judge) -> None:
    judge(value_checks()["reference-weights"])
