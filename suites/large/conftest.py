"""The result stream of the suite of large models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.results import Header
from harness.suites.results import (
    add_results_option,
    pytest_runtest_makereport,
    record,
    start_recording,
)

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["pytest_runtest_makereport", "record"]


def pytest_addoption(parser: pytest.Parser) -> None:
    add_results_option(parser.getgroup("large"), "results/large")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "large", config.getoption("results"), {})


@pytest.fixture
def timed(benchmark: BenchmarkFixture) -> BenchmarkFixture:
    """Return pytest-benchmark's fixture, which tells the versions, the machine and the commit."""
    header = Header.here({}).to_json()
    names = ("versions", "machine", "project")
    benchmark.extra_info.update({name: header[name] for name in names})
    return benchmark
