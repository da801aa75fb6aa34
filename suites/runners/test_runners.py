"""ExecuTorch's runners, unmodified: each scenario is a case; `known.toml` lists their defects."""

from __future__ import annotations

from collections.abc import Callable

from harness.checks import run_check
from harness.results import Case
from harness.suites.runners.conftest import BenchOf
from harness.suites.runners.script import Scenario


def test_runner(
    record: Callable[[Case], None], bench_of: BenchOf, label: str, scenario: Scenario, mode: str
) -> None:
    record(
        run_check(
            scenario.check,
            lambda: bench_of(label, scenario.fixture, mode),
            suite="runners",
            fixture=f"{label}:{scenario.fixture}",
            mode=mode,
        )
    )
