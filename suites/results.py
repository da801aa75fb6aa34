"""The results plugin of the suites that record cases: known defects, the stream, and its drawings.

In `pytest_configure` a suite registers a `Recorder` by `start_recording`. A test's cases travel in
its report, so that under xdist the controller receives them from every worker; a run without xdist
takes the same way. Two kinds of suites use this:

- Our own tests call the fixture `record` with each case; their conftest imports it, and
  `pytest_runtest_makereport`, from here.
- Other projects' tests are observed: the suite's plugin makes the case and calls `carry`. A suite
  whose cases are sums over tests derives from `Recorder`.

A suite with a table of its own derives from `TableRecorder`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from harness.checks.findings import read_known_defects
from harness.fixtures.project import project
from harness.report import run_table, summary_line, table_width, write_report
from harness.results import Case, Header, KnownDefect, Run, Writer, read_run
from harness.results.known import judge_against_known, parse_versions
from harness.results.machine import machine_line

KNOWN = read_known_defects(Path(__file__).with_name("known.toml"))
Exporters = Mapping[str, Mapping[str, str]]
_VERSIONS = pytest.StashKey[dict[str, Version]]()
_CASES = pytest.StashKey[list[Case]]()
_PROPERTY = "case"
_NO_RESULT = (
    pytest.ExitCode.INTERRUPTED,
    pytest.ExitCode.INTERNAL_ERROR,
    pytest.ExitCode.USAGE_ERROR,
)
_RUNS_NOTHING = ("collectonly", "help", "markers", "showfixtures", "show_fixtures_per_test")


class Recorder:
    """Writes the cases of a run to `FOLDER/SUITE.jsonl`, draws them, and prints their summary.

    The stream has the `header`.
    """

    def __init__(self, suite: str, folder: Path, header: Header) -> None:
        self.folder = folder
        self._suite, self._header = suite, header
        self._run: Run | None = None  # once it is written: an older run's may be at its path
        self._writer = Writer(folder / f"{suite}.jsonl", header)

    def pytest_report_header(self) -> list[str]:
        """Return the versions and the machine, which the stream has, too."""
        installed = self._header.versions.items()
        versions = [f"{name} {text}" for name, text in installed if text != "not installed"]
        return [", ".join(versions), f"machine: {machine_line(self._header.machine)}"]

    def cases_of(self, report: pytest.TestReport) -> Iterable[Case]:
        """Return the cases that a report carries.

        A test that fails without a case, as one whose process died does, is an error.
        """
        cases = [Case.from_json(case) for case in carried(report, _PROPERTY)]
        return cases or ([_broken(self._suite, report)] if report.failed else [])

    def last_cases(self) -> Iterable[Case]:
        """Return the cases that are known only when all tests have run."""
        return ()

    def draw(self, run: Run) -> None:
        """Write the drawings of a run beside its stream."""
        write_report(run, self.folder)

    def judged_nothing(self, run: Run) -> bool:
        """Return whether a run in which no test failed must fail all the same."""
        return False

    def summary(self, run: Run, colours: bool) -> str:
        """Return what the terminal shows of a run."""
        return run_table(run, colours, table_width(sys.stdout)) + "\n"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the cases of a report, a worker's or this process's."""
        for case in self.cases_of(report):
            self._writer.add(case)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """End an interrupted run without the place in the code at which it was interrupted."""
        try:
            return (yield)
        except KeyboardInterrupt:
            pytest.exit("interrupted")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Close the stream; a run that was interrupted gets no footer."""
        if exitstatus in _NO_RESULT:
            self._writer.abandon()
            return
        for case in self.last_cases():
            self._writer.add(case)
        self._writer.finish()
        self._run = read_run(self._writer.path)
        self.draw(self._run)
        if exitstatus == pytest.ExitCode.OK and self.judged_nothing(self._run):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary, and where the results are."""
        if self._run is None:
            return
        terminalreporter.section(self._suite)
        colours = bool(terminalreporter.isatty) and not os.environ.get("NO_COLOR")
        terminalreporter.write_line(self.summary(self._run, colours))
        terminalreporter.write_line(f"results: {self.folder}")


class TableRecorder(Recorder):
    """Prints the suite's own table, the reason of each case that did not pass, and the counts.

    With the name of a `page`, a file beside the stream gets the same table.
    """

    page = ""

    def table(self, run: Run) -> list[str]:
        """Return the table's lines."""
        raise NotImplementedError

    def counts(self, run: Run) -> list[str]:
        """Return lines of what the suite counts, which come before the last."""
        return []

    def draw(self, run: Run) -> None:
        """Write the drawings of a run and the page."""
        super().draw(run)
        if self.page:
            text = "\n".join(self.table(run)) + "\n"
            (self.folder / self.page).write_text(text, encoding="utf-8")

    def summary(self, run: Run, colours: bool) -> str:
        """Return the table, the reasons, and the last lines."""
        reasons = [f"{case.id}: {case.summary}" for case in run.cases if not case.passes]
        last = [*self.counts(run), summary_line(run.footer, colours)]
        return "\n".join([*self.table(run), "", *reasons, *last])


def markdown_table(
    run: Run,
    heads: Sequence[str],
    columns: Sequence[tuple[str, str]],
    column_of: Callable[[Case], tuple[str, str]],
    row: Callable[[str, list[Case | None]], Sequence[str]],
) -> list[str]:
    """Return a table in Markdown: for each fixture the `row` of its cases, one for each column.

    A case of no column, such as that of a test whose set-up failed, is in no row.
    """
    found: dict[str, dict[tuple[str, str], Case]] = defaultdict(dict)
    for case in run.cases:
        if (column := column_of(case)) in columns:
            found[case.fixture][column] = case
    rows = [row(name, [cases.get(one) for one in columns]) for name, cases in found.items()]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def start_recording(
    config: pytest.Config,
    suite: str,
    folder: Path,
    options: dict[str, Any],
    recorder: type[Recorder] = Recorder,
    exporters: Exporters | None = None,
    shard: Mapping[str, int] | None = None,
) -> None:
    """Register the run's `Recorder`, in the process that collects the reports.

    The header of the stream holds the `options` that the run was asked for; the `shard`, if the run
    is one; and `exporters`, the versions of each exporter by its name in the cases. The known
    defects of an artifact are those of its exporter's version.
    """
    exporters = exporters or {}
    made_by = {name: versions.get("executorch") for name, versions in exporters.items()}
    config.stash[_VERSIONS] = parse_versions(made_by)
    idle = any(getattr(config.option, name) for name in _RUNS_NOTHING)
    if not idle and not hasattr(config, "workerinput"):
        header = Header.here(options, exporters, shard=shard)
        config.pluginmanager.register(recorder(suite, folder, header), "recorder")


def add_results_option(group: pytest.OptionGroup, default: str = "results") -> None:
    """Add `--results`, the folder that a run writes to."""
    group.addoption("--results", type=Path, default=Path(default), help="where results go")


@functools.cache
def known_defects() -> tuple[KnownDefect, ...]:
    """Return the suites' known defects, and those of the user's project."""
    return (*KNOWN, *(defect for path in project().known for defect in read_known_defects(path)))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    """Record a case, and tell pytest how it went: skip or fail the test, or return."""

    def record(case: Case) -> None:
        case = judge_against_known(case, known_defects(), request.config.stash[_VERSIONS])
        request.node.stash.setdefault(_CASES, []).append(case)
        if case.outcome in ("skip", "known"):
            pytest.skip(case.summary)
        if case.outcome != "pass":
            pytest.fail(f"{case.outcome}: {case.summary}\n{case.traceback}".rstrip(), pytrace=False)

    return record


@pytest.fixture
def record_judged(request: pytest.FixtureRequest) -> Callable[[Iterable[Case]], None]:
    """Record cases that `harness check` has judged; the test itself says how it went."""
    cases: list[Case] = request.node.stash.setdefault(_CASES, [])
    return cases.extend


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report of a test carry its cases; a test that recorded none fails."""
    report = yield
    if call.when == "call":
        cases = item.stash.get(_CASES, [])
        report.user_properties.extend((_PROPERTY, case.to_json()) for case in cases)
        if not cases and not report.failed:  # passed, or skipped itself
            report.outcome = "failed"
            report.longrepr = "a test of this suite must record a case"
    return report


def carry(report: pytest.TestReport, case: Case) -> None:
    """Let another project's test carry a case to the `Recorder`, and judge both by `known.toml`."""
    judged = judge_against_known(case, known_defects())
    if judged.outcome == "known":
        report.outcome, report.wasxfail = "skipped", judged.summary
    elif judged.outcome == "fail" and not report.failed:  # the defect no longer shows
        report.outcome, report.longrepr = "failed", judged.reason
    report.user_properties.append((_PROPERTY, judged.to_json()))


def carried(report: pytest.TestReport, name: str) -> Iterator[Any]:
    """Yield the values that a report carries under a name."""
    properties: list[tuple[str, Any]] = report.user_properties
    return (value for key, value in properties if key == name)


def _broken(suite: str, report: pytest.TestReport) -> Case:
    name = re.sub(r"[\[\],\s]+", " ", f"{report.when} of {report.nodeid}").strip()
    reason = str(report.longrepr).strip().rpartition("\n")[2] or "the test failed"
    return Case(suite, name[-200:], outcome="error", stage="test", reason=reason)
