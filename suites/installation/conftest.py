"""The result stream of the installation suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from suites.results import pytest_runtest_makereport, record, start_recording

__all__ = ["pytest_runtest_makereport", "record"]


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path("results/installation")
    group = parser.getgroup("installation")
    group.addoption("--results", type=Path, default=default, help="where results go")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "installation", config.getoption("results"), {})
