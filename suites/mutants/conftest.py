"""The option and the result stream of `nox -s mutants`, and the table that it prints."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from harness.results import Case, Run
from harness.subject import Subject
from harness.suites import results
from harness.suites.mutants.edit import Mutation
from harness.suites.mutants.judge import CONTROL, broken
from harness.suites.results import record_judged

__all__ = ["record_judged"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("mutants").addoption(
        "--every-fault",
        type=Path,
        metavar="DIR",
        help="make the mutants for which the tests have no time, too, and write the results to DIR",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mutant: a broken copy of an artifact is judged")
    if folder := config.getoption("every_fault"):
        results.start_recording(config, "mutants", folder, {}, Table)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report of a mutant or a control carry its case."""
    if "record_judged" not in getattr(item, "fixturenames", ()):
        return (yield)
    return (yield from results.pytest_runtest_makereport(item, call))


class Table(results.Recorder):
    """Prints what found each mutant, and how many survived."""

    def summary(self, run: Run, colours: bool) -> str:
        """Return a line of each mutant, and their counts."""
        controls = [case for case in run.cases if case.check.startswith(CONTROL)]
        mutants = [case for case in run.cases if case not in controls]
        rows = [("fault", "room", "mode", "kind", "found by", "place", "s"), *map(_row, mutants)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        survivors = [case for case in mutants if case.outcome != "pass"]
        alarms = [case for case in controls if case.outcome != "pass"]
        faults = len({case.check for case in mutants})
        closing = (
            f"{faults} faults, {len(mutants)} mutants, {len(survivors)} survivors; "
            f"{len(controls)} controls, {len(alarms)} false alarms"
        )
        return "\n".join([*lines, closing])


def _row(case: Case) -> tuple[str, ...]:
    found = str(case.facts.get("found by", "")) if case.passes else "SURVIVED"
    place = str(case.facts.get("place", "")) if case.passes else case.reason
    room, seconds = str(case.facts.get("room", "")), f"{case.seconds:.1f}"
    return (case.check, room, case.mode, case.fixture, found, place[:70], seconds)


@pytest.fixture
def mutant(tmp_path: Path) -> Callable[[Mutation, str], Subject]:
    """Return a function that breaks a copy of the tiny export and opens it."""
    return lambda mutate, mode: broken(mutate, mode, tmp_path)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as to a file: pytest-xdist's workers have a width, by which lines wrap."""
    monkeypatch.delenv("COLUMNS", raising=False)
