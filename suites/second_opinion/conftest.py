"""The cases of the suite, the table that it prints, and the page that it writes."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

import importlib.util
import platform
from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

import pytest

from harness.results import Case, Run
from harness.suites.results import (
    TableRecorder,
    add_results_option,
    markdown_table,
    pytest_runtest_makereport,
    record,
    start_recording,
)
from harness.suites.second_opinion.judge import EXECUTORS, PRECISIONS, Judge, read_differences
from harness.suites.second_opinion.models import SUBJECTS

__all__ = ["pytest_runtest_makereport", "record"]

_NAMES = {"pytorch": "PyTorch", "mil": "ours", "core-ai": "Core AI"}
_SIGNS = {"skip": "refused", "known": "differs"}


class Table(TableRecorder):
    """Prints a row for each operation, and writes the same table as a page."""

    page = "second-opinion.md"

    def judged_nothing(self, run: Run) -> bool:
        """Return whether an executor compared nothing, or all three never met."""
        return lonely(run)

    def counts(self, run: Run) -> list[str]:
        """Return how many numbers each executor gave."""
        counted = {
            name: sum(c.comparisons for c in run.cases if c.runtime == name) for name in EXECUTORS
        }
        told = ", ".join(f"{_NAMES[name]} {number}" for name, number in counted.items())
        return [f"numbers compared with fp64: {told}"]

    def table(self, run: Run) -> list[str]:
        """Return the rows of the table in Markdown."""
        columns = [(precision, name) for precision in PRECISIONS for name in EXECUTORS]
        heads = [f"{precision} {_NAMES[name]}" for precision, name in columns]
        return markdown_table(
            run,
            ["operation", "measure", *heads],
            columns,
            attrgetter("check", "runtime"),
            lambda subject, cases: [subject, _measure(subject), *map(_cell, cases)],
        )


def lonely(run: Run) -> bool:
    """Return whether no subject was compared in all three executors."""
    compared = defaultdict(set)
    for case in run.cases:
        if case.comparisons and case.passes:
            compared[case.fixture, case.check].add(case.runtime)
    return not any(names == set(EXECUTORS) for names in compared.values())


def _measure(subject: str) -> str:
    return {"ulp": "ULP", "exact": "bits", "relative": "of the largest"}[SUBJECTS[subject].measure]


def _cell(case: Case | None) -> str:
    if case is None:
        return ""
    if not case.passes:
        return f"**{case.outcome}**"
    sign = _SIGNS.get(case.outcome, "")
    if not case.figures:
        return sign
    ordinary = case.figures.get("ordinary")
    return " ".join(filter(None, [f"{ordinary.value:.2g}" if ordinary else "", sign]))


def pytest_addoption(parser: pytest.Parser) -> None:
    add_results_option(parser.getgroup("second opinion"), "results/second-opinion")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "second-opinion", config.getoption("results"), {}, Table)


def pytest_runtest_setup() -> None:
    if platform.system() != "Linux":
        pytest.skip("our executor predicts through `harness shim`, which needs Linux")
    for package in ("coreai", "coreai_torch"):
        if importlib.util.find_spec(package) is None:
            pytest.fail(f"{package} is not installed: `nox -s second-opinion` installs it", False)


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    """Return the judge of the session's subjects; its child lives as long as the session."""
    chosen = [
        item.callspec.params["subject"]  # type: ignore[attr-defined]
        for item in request.session.items
    ]
    judge = Judge(read_differences(), chosen)
    yield judge
    judge.end()
