"""Requirements on execution: the artifact computes what its checkpoint computes."""

import pytest

from harness.checks import Check, artifact_checks, core_ml_checks, value_checks
from harness.subject import Subject
from harness.suites.conformance.cases import Judge

EXECUTION_CHECKS = [check for check in artifact_checks().values() if check.takes_runtime]


@pytest.mark.parametrize("check", EXECUTION_CHECKS, ids=lambda check: check.name)
def test_execution(judge: Judge, check: Check[Subject], runtime: str) -> None:
    judge(check, runtime)


@pytest.mark.core_ml("coreml", "executorch")
def test_against_core_ml(judge: Judge, runtime: str) -> None:
    judge(core_ml_checks()["against-core-ml"], runtime)


@pytest.mark.core_ml("coreml")
def test_core_ml_profile(judge: Judge, runtime: str) -> None:
    judge(core_ml_checks()["core-ml-profile"], runtime)


@pytest.mark.valued
def test_outputs(judge: Judge, runtime: str) -> None:
    judge(value_checks()["outputs"], runtime)
