"""The families of the suite, the results that it keeps, and the table that it prints."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

import platform
from operator import attrgetter
from pathlib import Path

import pytest

from harness.results import Case, Run
from harness.suites.families.judge import Judge
from harness.suites.families.models import FAMILIES
from harness.suites.results import (
    TableRecorder,
    add_results_option,
    markdown_table,
    pytest_runtest_makereport,
    record,
    start_recording,
)
from harness.text import clip, printable

__all__ = ["pytest_runtest_makereport", "record"]

_COLUMNS = tuple((mode, runtime) for mode in ("fixed", "flexible") for runtime in ("fp32", "fp16"))
MIN_FAMILIES = 40


class Table(TableRecorder):
    """Prints a row for each family, and writes the same table as a page."""

    page = "families.md"

    def judged_nothing(self, run: Run) -> bool:
        """Return whether nothing passed, or too few families of all predict."""
        families = {c.fixture for c in run.cases if (c.check, c.mode) == ("fp32", "fixed")}
        too_few = families == FAMILIES.keys() and len(_predicting(run)) < MIN_FAMILIES
        return too_few or not run.footer.passed

    def counts(self, run: Run) -> list[str]:
        """Return how many families predict."""
        many = len({case.fixture for case in run.cases})
        return [f"{len(_predicting(run))} of {many} families predict in fp32 at a fixed length"]

    def table(self, run: Run) -> list[str]:
        """Return the rows of the table in Markdown."""
        heads = ["family", *map(" ".join, _COLUMNS)]
        column_of = attrgetter("mode", "check")
        return markdown_table(
            run, heads, _COLUMNS, column_of, lambda name, cases: [name, *map(_cell, cases)]
        )


def _predicting(run: Run) -> set[str]:
    """Return the families that predict in fp32 at a fixed length."""
    wanted = ("fp32", "fixed", "pass")
    return {c.fixture for c in run.cases if (c.check, c.mode, c.outcome) == wanted}


def _cell(case: Case | None) -> str:
    if case is None:
        return ""
    if case.outcome == "pass":
        return f"{case.figures['error'].value:.1e}"
    if case.outcome == "skip":
        return clip(printable(case.reason).replace("|", "/"), 60)
    return f"**{case.outcome}**"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("families")
    add_results_option(group, "results/families")
    group.addoption(
        "--again", action="store_true", help="judge again what this code has judged before"
    )


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "families", config.getoption("results"), {}, Table)


def pytest_runtest_setup() -> None:
    if platform.system() != "Linux":
        pytest.skip("families predict on our executor through `harness shim`, which needs Linux")


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Judge:
    """Return the judge, which keeps each verdict beside the results."""
    folder = Path(request.config.getoption("results")) / "verdicts"
    judge = Judge(folder, again=request.config.getoption("again"))
    request.addfinalizer(judge.end)
    return judge
