"""Requirements between the exporters: their artifacts of one model compute alike."""

import pytest

from harness.checks.agreement import agreement_with
from harness.suites.conformance.cases import Judge
from harness.suites.conformance.subjects import Subjects

pytestmark = pytest.mark.other_exporters


def test_exporters_agree(
    judge: Judge, subjects: Subjects, fixture_name: str, mode: str, runtime: str
) -> None:
    """Hold the subject against the first ExecuTorch's export, which is made if it is not cached."""
    judge(agreement_with(lambda: subjects.of_first(fixture_name, mode)), runtime)
