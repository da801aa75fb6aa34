"""The pytest plugin: chooses tests, watches each, judges listed ones, and writes the results.

With xdist a worker sends what it saw as a property of the test's report; the controller adds up.
"""

from __future__ import annotations

import gc
import os
import random
import zlib
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.results import Case, Header, Run
from harness.suites.impossible import Impossible, Target, entry_of, judge_listed, mark_listed
from harness.suites.operators.beside import Comparison, cases
from harness.suites.operators.selection import is_fp32, sample, target_of
from harness.suites.operators.tally import Result, case_of, opset_table, rows_of
from harness.suites.operators.watch import Sight, watched
from harness.suites.results import Recorder, add_results_option, carried, start_recording

IMPOSSIBLE = Path(__file__).with_name("impossible.toml")
_SIGHT = pytest.StashKey[Sight]()
PROPERTY, BESIDE = "operators", "beside"
_MAX_PROBLEM = 300


class OperatorsRecorder(Recorder):
    """Adds up the tests' results: a case is all tests of one file and opset.

    Beside the stream it writes a table per opset, `opsets.txt`, and `failures.txt`. The tests that
    are expected to fail are in `impossible.toml`, by name and parameters.
    """

    def __init__(self, suite: str, folder: Path, header: Header) -> None:
        super().__init__(suite, folder, header)
        self._results: list[Result] = []
        self._native = bool(header.options["native"])
        self._comparisons: list[Comparison] = []

    def cases_of(self, report: pytest.TestReport) -> Iterable[Case]:
        """Keep a test's result, for the last cases; one without ended its process."""
        results = [Result.from_json(value) for value in carried(report, PROPERTY)]
        if report.failed and not results:
            path, _, rest = report.nodeid.partition("::")
            function, _, parameters = rest.partition("[")
            file = "/".join(path.split("/")[-2:])
            target = Target(file, function, parameters.rstrip("]"))
            results = [Result(target, "failed", problem="the process ended")]
        self._results += results
        self._comparisons += [Comparison.from_json(found) for found in carried(report, BESIDE)]
        return ()

    def last_cases(self) -> Iterable[Case]:
        """Yield a case for each file and opset, and with Core ML for each operation."""
        runtime = f"mil:{os.environ.get('HARNESS_POLICY', 'strict')}"
        runtime = "coreml" if self._native else runtime
        rows = rows_of(self._results).items()
        yield from (case_of(opset, file, row, runtime) for (opset, file), row in rows)
        yield from cases(self._comparisons)

    def judged_nothing(self, run: Run) -> bool:
        """Return whether no test predicted."""
        return not any(case.facts.get("predicted") for case in run.cases)

    def summary(self, run: Run, colours: bool) -> str:
        """Return the table per opset."""
        table = opset_table(rows_of(self._results))
        if self.judged_nothing(run):
            table += "\n\nNo test predicted: nothing was judged, and the run fails."
        return table + "\n"

    def draw(self, run: Run) -> None:
        """Write the usual drawings, the table per opset and the failures."""
        super().draw(run)
        (self.folder / "opsets.txt").write_text(self.summary(run, colours=False))
        failures = [
            f"{result.target}\n    {result.problem}\n"
            for result in self._results
            if result.end in ("failed", "broken")
        ]
        (self.folder / "failures.txt").write_text("".join(failures))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("operators")
    group.addoption("--everything", action="store_true", help="every fp32 configuration")
    group.addoption(
        "--native", action="store_true", help="on a Mac: judge Core ML itself, and ours beside it"
    )
    group.addoption("--sample", type=int, default=1, help="configurations per test and opset")
    add_results_option(group)


def pytest_configure(config: pytest.Config) -> None:
    options = {name: config.getoption(name) for name in ("everything", "native", "sample")}
    folder = config.getoption("results") / "operators"
    start_recording(config, "operators", folder, options, OperatorsRecorder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the listed tests, and keep the chosen ones."""
    # Core ML itself may pass what our executor cannot.
    targets = {item: target_of(item) for item in items}
    mark_listed(targets, IMPOSSIBLE, unsteady=config.getoption("native"))
    chosen = [item for item in items if is_fp32(item)]
    if not config.getoption("everything"):
        sampled = sample(chosen, config.getoption("sample"))
        chosen = [item for item in chosen if item in sampled]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_collection_finish() -> None:
    """Exclude what is in memory now from garbage collections.

    coremltools asks for a collection at each conversion. With every test and module to look at, it
    takes most of a test's time.
    """
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch a test, and give it the same random numbers whatever ran before it."""
    seed = zlib.crc32(str(target_of(item)).encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # our executor's operations without a seed draw theirs from it
    with watched(item.config.getoption("native")) as sight:
        item.stash[_SIGHT] = sight
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a listed test, and let the report carry what the test did."""
    report = yield
    if call.when != "call" and report.passed:
        return report
    listed = entry_of(item)
    if listed is not None:
        judge_listed(report, listed)
    sight = item.stash.get(_SIGHT, Sight())
    result = Result(
        target=target_of(item),
        end=_end(report, sight, listed),
        values=sight.values,
        at_half=sight.at_half > 0,
        problem=_problem(report, call),
        seconds=report.duration,
    )
    report.user_properties.append((PROPERTY, result.to_json()))
    if sight.beside is not None and sight.loads and listed is None:
        report.user_properties.append((BESIDE, sight.beside.to_json()))
    return report


def _end(report: pytest.TestReport, sight: Sight, listed: Impossible | None) -> str:
    """Return the heading of `tally.COLUMNS` that a test counts under."""
    if report.failed:
        return "failed" if sight.loads or sight.predictions or listed else "broken"
    if hasattr(report, "wasxfail"):
        return "listed" if listed else "upstream"
    if report.skipped:
        return "skipped"
    return "passed" if sight.predictions else "no prediction"


def _problem(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str:
    if not report.failed:
        return ""
    if call.excinfo is None:
        return str(report.longrepr)
    message = " ".join(str(call.excinfo.value).split())
    return f"{call.excinfo.typename}: {message}"[:_MAX_PROBLEM]
