"""Requirements on the installed ExecuTorch; `known.toml` lists the defects of a release."""

from collections.abc import Callable

import pytest

from harness.checks import Check, run_check
from harness.errors import HarnessError
from harness.installation import INSTALLATION_CHECKS, Installation
from harness.results import Case


@pytest.mark.parametrize("check", INSTALLATION_CHECKS.values(), ids=lambda check: check.name)
def test_installation(record: Callable[[Case], None], check: Check[Installation]) -> None:
    try:
        fixture = f"executorch-{Installation.here().version}"
    except HarnessError:
        fixture = "-"  # the case gives the reason
    record(run_check(check, Installation.here, suite="installation", fixture=fixture))
