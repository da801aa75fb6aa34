"""The results plugin of the suites that record cases: known defects, the stream, what is drawn.

A suite's conftest registers a `Recorder` in `pytest_configure`, and its tests call the fixture
`record` with each case. The case travels in the test's report, so that under xdist the controller
receives it from whichever worker made it, and a run without xdist takes the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from harness.report import run_table, write_report
from harness.results import Case, Header, Writer, read_known, read_run

KNOWN = read_known(Path(__file__).with_name("known.toml"))
_CASES = pytest.StashKey[list[dict[str, Any]]]()
_PROPERTY = "case"
_NO_RESULT = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)


class Recorder:
    """Writes the cases of a run to `FOLDER/SUITE.jsonl`, draws them, and prints their table.

    `options` are what the run was asked for; the header of the stream holds them.
    """

    def __init__(self, suite: str, folder: Path, options: dict[str, Any]) -> None:
        self._suite = suite
        self._finished = False
        self._writer = Writer(folder / f"{suite}.jsonl", Header.here(options))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the cases out of a report, a worker's or this process's.

        A test that fails without a case, as one whose process died does, is an error.
        """
        carried: list[Any] = [case for name, case in report.user_properties if name == _PROPERTY]
        cases = [Case.from_json(case) for case in carried]
        if report.failed and not cases:
            cases = [self._broken(report)]
        for case in cases:
            self._writer.add(case)

    def _broken(self, report: pytest.TestReport) -> Case:
        name = re.sub(r"[\[\],\s]+", " ", f"{report.when} of {report.nodeid}").strip()
        reason = str(report.longrepr).strip().rpartition("\n")[2] or "the test failed"
        return Case(self._suite, name[-200:], outcome="error", stage="test", reason=reason)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Close the stream; a run that was interrupted gets no footer."""
        if exitstatus in _NO_RESULT:
            self._writer.abandon()
            return
        self._writer.finish()
        self._finished = True
        write_report(read_run(self._writer.path), self._writer.path.parent)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, and where the results are."""
        if not self._finished:  # what lies at the path is an older run's
            return
        terminalreporter.section(self._suite)
        colours = bool(terminalreporter.isatty) and not os.environ.get("NO_COLOR")
        terminalreporter.write_line(run_table(read_run(self._writer.path), colours=colours))
        terminalreporter.write_line(f"\nresults: {self._writer.path.parent}")


def start_recording(
    config: pytest.Config, suite: str, folder: Path, options: dict[str, Any]
) -> None:
    """Register the run's `Recorder`, in the process that collects the reports."""
    if not config.option.collectonly and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(suite, folder, options), "recorder")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    """Record a case, and tell pytest how it went: it skips or fails the test, or returns."""

    def record(case: Case) -> None:
        request.node.stash.setdefault(_CASES, []).append(case.to_json())
        if case.outcome in ("skip", "known"):
            pytest.skip(case.summary)
        if case.outcome != "pass":
            pytest.fail(f"{case.outcome}: {case.summary}\n{case.traceback}".rstrip(), pytrace=False)

    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report of a test carry its cases; a test that recorded none fails."""
    report = yield
    if call.when == "call":
        cases = item.stash.get(_CASES, [])
        report.user_properties.extend((_PROPERTY, case) for case in cases)
        if not cases and not report.failed:  # passed, or skipped itself
            report.outcome = "failed"
            report.longrepr = "a test of this suite must record a case"
    return report
