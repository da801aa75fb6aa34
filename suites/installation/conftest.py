"""The option `--exporter` and the result stream of the installation suite."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError, NotInstalledError
from harness.export.environments import EXECUTORCH, environment
from harness.export.overlays import CHECKOUT
from harness.installation import Installation
from harness.suites.results import (
    add_results_option,
    pytest_runtest_makereport,
    record,
    start_recording,
)

__all__ = ["pytest_runtest_makereport", "record"]

_INSTALLATION = pytest.StashKey[Installation | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("installation")
    add_results_option(group, "results/installation")
    group.addoption(
        "--exporter",
        default=EXECUTORCH,
        metavar="NAME",
        help="executorch (the installed one), executorch@VERSION, or executorch@PATH (a Python or "
        "a virtual environment)",
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("exporter")
    try:
        found = _installation(name)
        versions = {EXECUTORCH: {EXECUTORCH: found.version}} if found else {}
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_INSTALLATION] = found
    folder = config.getoption("results")
    start_recording(config, "installation", folder, {"exporter": name}, exporters=versions)


def _installation(name: str) -> Installation | None:
    """Return the installation of a name; None where the installed one is asked for and is not."""
    kind, _, place = name.partition("@")
    if kind != EXECUTORCH:
        raise HarnessError(f"--exporter {name}: the suite judges an ExecuTorch; give executorch")
    if not place:
        try:
            return Installation.here()
        except NotInstalledError:
            return None
    root = environment(place).root
    if root.parent.name.startswith(CHECKOUT):
        raise HarnessError(
            f"--exporter {name}: a checkout has no compiled parts; give a Python in which it is "
            "installed"
        )
    return Installation(root.parent)


@pytest.fixture
def installation(pytestconfig: pytest.Config) -> Installation | None:
    """Return the installation under test, None when ExecuTorch is not installed."""
    return pytestconfig.stash[_INSTALLATION]
