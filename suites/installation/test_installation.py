"""What must hold of the installed ExecuTorch; `known.toml` lists the defects of a release."""

import pytest

from harness.checks.run import run_check
from harness.errors import HarnessError
from harness.installation import INSTALLATION_CHECKS, Installation
from suites.conformance.cases import KNOWN


@pytest.mark.parametrize("check", INSTALLATION_CHECKS.values(), ids=lambda check: check.name)
def test_installation(stream, check):
    try:
        fixture = f"executorch-{Installation.here().version}"
    except HarnessError:
        fixture = "-"  # the case gives the reason
    case = run_check(check, Installation.here, suite="install", fixture=fixture, known=KNOWN)
    stream.add(case)
    if case.outcome in ("skip", "known"):
        pytest.skip(case.summary)
    if case.outcome != "pass":
        pytest.fail(f"{case.outcome}: {case.summary}\n{case.traceback}".rstrip(), pytrace=False)
