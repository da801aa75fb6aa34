"""The pytest plugin: opens the gates, watches each test, judges it, and records its case."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness.results import Case, Run
from harness.suites.impossible import Target, entry_of, judge_listed, mark_listed
from harness.suites.results import Recorder, add_results_option, carry, start_recording
from harness.suites.upstream.gates import Asked, open_gates, read_asked
from harness.suites.upstream.watch import Sight, watched

IMPOSSIBLE = Path(__file__).with_name("impossible.toml")
_ASKED = pytest.StashKey[Asked]()
_SIGHT = pytest.StashKey[Sight]()
_MAX_REASON = 400


class UpstreamRecorder(Recorder):
    """Records a case for each test, and sums up what the tests asked of a runtime."""

    def judged_nothing(self, run: Run) -> bool:
        """Return whether no test executed anything."""
        return not _totals(run)["executions"]

    def summary(self, run: Run, colours: bool) -> str:
        """Return the outcomes, and how much of the runtime the tests really asked for."""
        totals, outcomes = _totals(run), Counter(case.outcome for case in run.cases)
        asking = sum(bool(case.facts.get("runtime_assertions")) for case in run.cases)
        counts = ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items()))
        return (
            f"{len(run.cases)} tests: {counts}\n"
            f"{asking} of them ask a runtime: {totals['runtime_assertions_reached']} of "
            f"{totals['runtime_assertions']} assertions reached, "
            f"{totals['executions']} executions, {totals['refusals']} refusals"
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstream")
    add_results_option(group)
    help = "the list of tests that cannot apply"
    group.addoption("--impossible", type=Path, default=IMPOSSIBLE, help=help)


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("results") / "upstream"
    start_recording(config, "upstream", folder, {}, UpstreamRecorder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Open the gates, note what each test must reach, and mark the listed tests."""
    asked = {path: read_asked(path) for path in {item.path for item in items}}
    for item in items:
        if isinstance(item, pytest.Function):
            open_gates(item.module)
        item.stash[_ASKED] = asked[item.path].get(_target(item).function, Asked())
    mark_listed({item: _target(item) for item in items}, config.getoption("impossible"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch a test; one that passes fails all the same when it did not ask what it should."""
    with watched(str(item.path)) as sight:
        item.stash[_SIGHT] = sight
        result = yield
    if problem := unasked(item.stash[_ASKED], sight):
        raise AssertionError(problem)
    return result


def unasked(asked: Asked, sight: Sight) -> str:
    """Say what a test that passed left out; nothing if it left out nothing."""
    if asked.executes and not sight.executions:
        return "it passed, but Core ML's part of its program was never executed"
    missed = [lines for lines in asked.assertions if not sight.reached(lines)]
    if missed:
        where = ", ".join(map(str, sorted(missed, key=lambda lines: lines.first)))
        return f"it passed, but did not reach what it asserts of the runtime: {where}"
    return ""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a listed test, and let every test's report carry its case."""
    report = yield
    if call.when != "call" and report.passed:
        return report
    listed = entry_of(item)
    if listed is not None:
        judge_listed(report, listed)
    carry(report, _case(item, report, call))
    return report


def _case(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> Case:
    sight, asserted = item.stash.get(_SIGHT, Sight()), item.stash[_ASKED].assertions
    compared = sight.values + len(sight.assertions)
    outcome, reason = "pass", ""
    if report.failed:
        outcome, reason = "fail", str(call.excinfo.value if call.excinfo else report.longrepr)
        reason = " ".join(reason.split())[:_MAX_REASON]
    elif report.skipped:
        outcome, reason = "skip", getattr(report, "wasxfail", "") or "skipped by ExecuTorch"
    elif not compared:
        outcome, reason = "skip", "it passed without an assertion"
    return Case(
        "upstream",
        check=_target(item).name,
        runtime=_runtime(),
        outcome=outcome,
        reason=reason,
        comparisons=compared if outcome == "pass" else 0,
        facts={
            "runtime_assertions": len(asserted),
            "runtime_assertions_reached": sum(map(sight.reached, asserted)),
            "executions": sight.executions,
            "refusals": sight.refusals,
        },
        seconds=round(report.duration, 3),
    )


def _totals(run: Run) -> Counter[str]:
    totals: Counter[str] = Counter()
    for case in run.cases:
        totals.update({name: int(value) for name, value in case.facts.items()})
    return totals


def _target(item: pytest.Item) -> Target:
    return Target(item.path.name, "::".join(item.nodeid.split("::")[1:]))


def _runtime() -> str:
    if sys.platform == "darwin":
        return "executorch"
    return f"executorch on mil:{os.environ.get('HARNESS_POLICY', 'strict')}"
