"""The controller's part: collects every test's result, and writes what came of them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from harness.report import write_report
from harness.results import Header, Writer, read_run
from suites.operators.selection import NO_OPSET, Target
from suites.operators.tally import Result, case_of, opset_table, rows_of

_FOLDER = "operators"


class Results:
    """Writes `operators/` below the results' folder: stream, report, table per opset, failures."""

    def __init__(self, config: pytest.Config) -> None:
        self._folder = config.getoption("results") / _FOLDER
        self._options = {
            "everything": config.getoption("everything"),
            "sample": config.getoption("sample"),
        }
        self._runtime = f"mil:{os.environ.get('HARNESS_POLICY', 'strict')}"
        self._results: list[Result] = []
        self._table = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's result; one without is of a test that ended its process."""
        from suites.operators.plugin import PROPERTY, result_of_property

        carried: dict[str, Any] = dict(report.user_properties)
        if PROPERTY in carried:
            self._results.append(result_of_property(carried[PROPERTY]))
        elif report.failed:
            path, _, rest = report.nodeid.partition("::")
            function, _, parameters = rest.partition("[")
            file = "/".join(path.split("/")[-2:])
            target = Target(file, function, parameters.rstrip("]"), NO_OPSET)
            self._results.append(Result(target, "failed", problem="the process ended"))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the results of a whole run; an interrupted one has none.

        A run in which nothing predicted has shown nothing, and fails.
        """
        unfinished = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
        if exitstatus in unfinished or not self._results:
            return
        rows = rows_of(self._results)
        path = self._folder / "operators.jsonl"
        with Writer(path, Header.here(self._options)) as writer:
            for (opset, file), row in rows.items():
                writer.add(case_of(opset, file, row, self._runtime))
        write_report(read_run(path), self._folder)
        self._table = opset_table(rows)
        if not any(row.counts["predicted"] for row in rows.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self._table += "\n\nNo test predicted: nothing was judged, and the run fails."
        (self._folder / "opsets.txt").write_text(self._table + "\n")
        failures = [
            f"{result.target}\n    {result.problem}\n"
            for result in self._results
            if result.end in ("failed", "broken")
        ]
        (self._folder / "failures.txt").write_text("".join(failures))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show the table."""
        if self._table:
            terminalreporter.section("operators")
            terminalreporter.write_line(self._table)
            terminalreporter.write_line(f"\nresults: {self._folder}")
