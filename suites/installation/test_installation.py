"""Requirements on an installed ExecuTorch; `known.toml` lists the defects of releases."""

from collections.abc import Callable

import pytest

from harness.checks import Check, run_check
from harness.installation import INSTALLATION_CHECKS, Installation
from harness.results import Case


@pytest.mark.parametrize("check", INSTALLATION_CHECKS.values(), ids=lambda check: check.name)
def test_installation(
    record: Callable[[Case], None],
    check: Check[Installation],
    installation: Installation | None,
) -> None:
    fixture = f"executorch-{installation.version}" if installation else "-"
    found = installation or Installation.here  # the case gives the reason
    record(run_check(check, found, suite="installation", fixture=fixture))
