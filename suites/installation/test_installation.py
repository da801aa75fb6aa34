"""What must hold of the installed ExecuTorch; defects of a release stand in `known.toml`."""

import pytest

from harness.errors import HarnessError, NotInstalledError
from harness.installation import CHECKS, Installation
from harness.results import Case, case_from_findings
from suites.known import known_issue


@pytest.mark.parametrize("check", CHECKS)
def test_install(stream, check):
    names = {"suite": "install", "check": check, "fixture": "-", "mode": "-", "runtime": "-"}
    try:
        installation = Installation.here()
        names["fixture"] = f"executorch-{installation.version}"
        case = case_from_findings(CHECKS[check](installation), **names)
    except NotInstalledError as error:
        case = Case(**names, outcome="skip", reason=str(error))
    except HarnessError as error:
        case = Case(**names, outcome="error", stage="check", reason=str(error))
    if issue := known_issue(case):
        case = case.judged_against_known(issue)
    stream.add(case)
    if case.outcome in ("skip", "known"):
        pytest.skip(case.summary)
    if case.outcome != "pass":
        pytest.fail(f"{case.outcome}: {case.summary}", pytrace=False)
