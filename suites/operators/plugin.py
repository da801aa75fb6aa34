"""The pytest plugin: chooses tests, watches each, judges listed ones, and writes the results.

With xdist a worker sends what it saw as a property of the test's report; the controller adds up.
"""

from __future__ import annotations

import gc
import random
import zlib
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suites.operators.impossible import Impossible, read_impossible, unused
from suites.operators.results import Results
from suites.operators.selection import Target, is_fp32, sample, target_of
from suites.operators.tally import Result
from suites.operators.watch import Sight, watched

_LISTED = pytest.StashKey[Impossible]()
_SIGHT = pytest.StashKey[Sight]()
PROPERTY = "operators"
_LONGEST_PROBLEM = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("operators")
    group.addoption("--everything", action="store_true", help="every fp32 configuration")
    group.addoption("--sample", type=int, default=1, help="configurations per test and opset")
    group.addoption("--results", type=Path, default=Path("results"), help="where results go")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(config), "operators-results")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the listed tests, and keep the chosen ones; an entry that lists nothing is an error."""
    targets = {item: target_of(item) for item in items}
    files = {target.file for target in targets.values()}
    entries = [entry for entry in read_impossible() if entry.test.partition("::")[0] in files]
    if stale := unused(entries, targets.values()):
        names = ", ".join(entry.test for entry in stale)
        raise pytest.UsageError(f"impossible.toml lists tests that are not there: {names}")
    by_test: dict[str, list[Impossible]] = {}
    for entry in entries:
        by_test.setdefault(entry.test, []).append(entry)
    for item, target in targets.items():
        for entry in by_test.get(target.name, ()):
            if entry.covers(target):
                item.stash[_LISTED] = entry
    chosen = [item for item in items if is_fp32(item)]
    if not config.getoption("everything"):
        kept = sample(chosen, config.getoption("sample"))
        chosen = [item for item in chosen if item in kept]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_collection_finish() -> None:
    """Leave what stands now out of garbage collections: coremltools asks for one per conversion,
    and with every test and module in it that takes most of a test's time."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch a test, and give it the same random numbers whatever ran before it."""
    seed = zlib.crc32(str(target_of(item)).encode())
    random.seed(seed)
    np.random.seed(seed)
    with watched() as sight:
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
    listed = item.stash.get(_LISTED, None)
    if listed is not None:
        _judge_listed(report, listed)
    sight = item.stash.get(_SIGHT, Sight())
    result = Result(
        target=target_of(item),
        end=_end(report, sight, listed),
        values=sight.values,
        at_half=sight.at_half > 0,
        problem=_problem(report, call),
        seconds=report.duration,
    )
    report.user_properties.append((PROPERTY, asdict(result)))
    return report


def _judge_listed(report: pytest.TestReport, listed: Impossible) -> None:
    """A listed test that fails is expected to; one that passes is a failure, unless unsteady."""
    if report.failed:
        report.outcome, report.wasxfail = "skipped", listed.reason
    elif report.passed and not listed.unsteady:
        report.outcome = "failed"
        report.longrepr = f"listed as impossible ({listed.reason}), but it passes: remove the entry"


def _end(report: pytest.TestReport, sight: Sight, listed: Impossible | None) -> str:
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
    return f"{call.excinfo.typename}: {message}"[:_LONGEST_PROBLEM]


def result_of_property(value: dict[str, Any]) -> Result:
    """Return the result that a report carries."""
    return Result(**(value | {"target": Target(**value["target"])}))
