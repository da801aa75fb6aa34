"""The result stream of the suite of large models."""

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
    add_results_option(parser.getgroup("large"), "results/large")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "large", config.getoption("results"), {})
