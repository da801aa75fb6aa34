"""The result stream of the suite: the cases that `harness check` printed, of all subjects."""

from __future__ import annotations

import pytest

from harness.suites.results import (
    add_results_option,
    pytest_runtest_makereport,
    record_judged,
    start_recording,
)

__all__ = ["pytest_runtest_makereport", "record_judged"]


def pytest_addoption(parser: pytest.Parser) -> None:
    add_results_option(parser.getgroup("healthy"), "results/healthy")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "healthy", config.getoption("results"), {})
