"""The result stream of the installation suite."""

from __future__ import annotations

import pytest

from harness.suites.results import (
    add_results_option,
    pytest_runtest_makereport,
    record,
    start_recording,
)

__all__ = ["pytest_runtest_makereport", "record"]


def pytest_addoption(parser: pytest.Parser) -> None:
    add_results_option(parser.getgroup("installation"), "results/installation")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "installation", config.getoption("results"), {})
