"""Each subject, in fp32 and fp16: an executor agrees with fp64, or the difference is recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.results import Case
from harness.suites.second_opinion.judge import EXECUTORS, PRECISIONS, Judge
from harness.suites.second_opinion.models import SUBJECTS


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_an_executor_agrees_with_fp64(
    record: Callable[[Case], None], judge: Judge, subject: str, precision: str, executor: str
) -> None:
    record(judge.case(subject, precision, executor))
