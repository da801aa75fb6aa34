"""Requirements on the installed ExecuTorch; `known.toml` lists the defects of a release."""

import pytest

from harness.checks.run import run_check
from harness.errors import HarnessError
from harness.installation import INSTALLATION_CHECKS, Installation


@pytest.mark.parametrize("check", INSTALLATION_CHECKS.values(), ids=lambda check: check.name)
def test_installation(record, check):
    try:
        fixture = f"executorch-{Installation.here().version}"
    except HarnessError:
        fixture = "-"  # the case gives the reason
    record(run_check(check, Installation.here, suite="installation", fixture=fixture))
