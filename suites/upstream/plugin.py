"""The pytest plugin: opens the gates, watches each test, judges it, and writes the results."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness.report import write_report
from harness.results import Case, Header, Writer, read_run
from suites.operators.impossible import Impossible, read_impossible, unused
from suites.operators.selection import NO_OPSET, Target
from suites.upstream.gates import Asked, open_gates, read_asked
from suites.upstream.watch import Sight, watched

LIST = Path(__file__).with_name("impossible.toml")
_FOLDER = "upstream"
_ASKED = pytest.StashKey[Asked]()
_SIGHT = pytest.StashKey[Sight]()
_LISTED = pytest.StashKey[Impossible]()
_CASES = pytest.StashKey[list[Case]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstream")
    group.addoption("--results", type=Path, default=Path("results"), help="where results go")
    group.addoption("--impossible", type=Path, default=LIST, help="the tests that cannot apply")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CASES] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Open the gates, and note what each test must reach; a list that lists nothing is an error."""
    files = {item.path for item in items}
    asked = {path: read_asked(path) for path in files}
    for item in items:
        open_gates(item.module)
        item.stash[_ASKED] = asked[item.path].get(_target(item).function, Asked())
    entries = read_impossible(config.getoption("impossible"))
    names = {path.name for path in files}
    entries = tuple(entry for entry in entries if entry.test.partition("::")[0] in names)
    if stale := unused(entries, map(_target, items)):
        tests = ", ".join(entry.test for entry in stale)
        raise pytest.UsageError(f"impossible.toml lists tests that are not there: {tests}")
    for item in items:
        for entry in filter(lambda entry: entry.covers(_target(item)), entries):
            item.stash[_LISTED] = entry


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
    missed = [place for place in asked.assertions if not sight.reached(place)]
    if missed:
        where = ", ".join(map(str, sorted(missed, key=lambda place: place.first)))
        return f"it passed, but did not reach what it asserts of the runtime: {where}"
    return ""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a listed test, and keep every test's case."""
    report = yield
    if call.when != "call" and report.passed:
        return report
    listed = item.stash.get(_LISTED, None)
    if listed is not None:
        _judge_listed(report, listed)
    item.config.stash[_CASES].append(_case(item, report, call))
    return report


def _judge_listed(report: pytest.TestReport, listed: Impossible) -> None:
    """A listed test that fails is expected to; one that passes is a failure."""
    if report.failed:
        report.outcome, report.wasxfail = "skipped", listed.reason
    elif report.passed:
        report.outcome = "failed"
        report.longrepr = f"listed as impossible ({listed.reason}), but it passes: remove the entry"


def _case(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> Case:
    sight, places = item.stash.get(_SIGHT, Sight()), item.stash[_ASKED].assertions
    names = {"suite": "upstream", "check": _target(item).name, "runtime": _runtime()}
    facts = {
        "runtime_assertions": len(places),
        "runtime_assertions_reached": sum(map(sight.reached, places)),
        "executions": sight.executions,
        "refusals": sight.refusals,
    }
    rest = {"facts": facts, "seconds": round(report.duration, 3)}
    if report.failed:
        reason = str(call.excinfo.value if call.excinfo else report.longrepr)
        return Case(**names, outcome="fail", reason=" ".join(reason.split())[:400], **rest)
    if report.skipped:
        reason = getattr(report, "wasxfail", "") or "skipped by ExecuTorch"
        return Case(**names, outcome="skip", reason=reason, **rest)
    compared = sight.values + len(sight.assertions)
    if not compared:
        return Case(**names, outcome="skip", reason="it passed without an assertion", **rest)
    return Case(**names, comparisons=compared, **rest)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the results of a whole run; one that executed nothing has not passed."""
    cases = session.config.stash[_CASES]
    unfinished = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
    if exitstatus in unfinished or not cases:
        return
    folder = session.config.getoption("results") / _FOLDER
    with Writer(folder / "upstream.jsonl", Header.here({})) as writer:
        for case in cases:
            writer.add(case)
    write_report(read_run(writer.path), folder)
    if exitstatus == pytest.ExitCode.OK and not _totals(cases)["executions"]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much of the runtime was really asked."""
    cases = terminalreporter.config.stash[_CASES]
    if not cases:
        return
    totals, outcomes = _totals(cases), Counter(case.outcome for case in cases)
    asking = sum(bool(case.facts["runtime_assertions"]) for case in cases)
    terminalreporter.section("upstream")
    terminalreporter.write_line(
        f"{len(cases)} tests: {', '.join(f'{n} {name}' for name, n in sorted(outcomes.items()))}\n"
        f"{asking} of them ask a runtime: {totals['runtime_assertions_reached']} of "
        f"{totals['runtime_assertions']} assertions reached, {totals['executions']} executions, "
        f"{totals['refusals']} refusals\n"
        f"results: {terminalreporter.config.getoption('results') / _FOLDER}"
    )


def _totals(cases: list[Case]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for case in cases:
        totals.update({name: int(value) for name, value in case.facts.items()})
    return totals


def _target(item: pytest.Item) -> Target:
    function = "::".join(item.nodeid.split("::")[1:])
    return Target(item.path.name, function, "", NO_OPSET)


def _runtime() -> str:
    if sys.platform == "darwin":
        return "executorch"
    return f"executorch on mil:{os.environ.get('HARNESS_POLICY', 'strict')}"
