"""The suites' results plugin records the same cases with xdist and without, and loses none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.results import read_run

CONFTEST = """
from pathlib import Path
from harness.suites.results import pytest_runtest_makereport, record, start_recording

def pytest_configure(config):
    start_recording(config, "mini", Path("results"), {})
"""
TABLED = """
from pathlib import Path
import pytest
from harness.suites.results import (
    TableRecorder, markdown_table, pytest_runtest_makereport, record, start_recording
)

class Table(TableRecorder):
    page = "page.md"

    def table(self, run):
        heads, columns = ["model", "fp32", "fp16"], [("round", "fp32"), ("round", "fp16")]
        row = lambda name, cases: [name, *(case.outcome if case else "" for case in cases)]
        return markdown_table(run, heads, columns, lambda case: (case.check, case.mode), row)

    def counts(self, run):
        return [f"{len(run.cases)} cases came"]

def pytest_configure(config):
    start_recording(config, "mini", Path("results"), {}, Table)

def pytest_runtest_setup(item):
    if "unprepared" in item.name:
        pytest.fail("the library is not installed: install it", pytrace=False)
"""
IN_TABLE = """
from harness.results import Case

def test_one(record):
    record(Case("mini", "round", "exp", "fp16", comparisons=1))

def test_other(record):
    record(Case("mini", "round", "log", "fp32", outcome="fail", reason="wrong"))

def test_unprepared(record):
    pass
"""
OBSERVING = """
from pathlib import Path
import pytest
from harness.results import Case, KnownDefect
from harness.suites import results

results.KNOWN = (KnownDefect("an issue", check="known-*"),)

def pytest_configure(config):
    results.start_recording(config, "mini", Path("results"), {})

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        name = item.name.removeprefix("test_").replace("_", "-")
        failed = {"outcome": "fail", "reason": "wrong"} if report.failed else {}
        results.carry(report, Case("mini", name, comparisons=1, **failed))
    return report
"""
OBSERVED = """
def test_sound(): pass
def test_broken(): assert False
def test_known_and_there(): assert False
def test_known_and_gone(): pass
"""
TESTS = """
import os
import pytest
from harness.results import Case

def case(name, outcome="pass", **more):
    return Case("mini", name, outcome=outcome, comparisons=1, **more)

@pytest.mark.parametrize("number", range(4))
def test_passing(record, number):
    record(case(f"sound-{number}"))

def test_skipped(record):
    record(case("skipped", "skip", reason="not here"))
"""
FAILING = "\ndef test_failing(record):\n    record(case('broken', 'fail', reason='wrong'))\n"
SILENT = "\ndef test_silent(record):\n    pass\n"
SKIPPING = "\ndef test_silent(record):\n    pytest.skip('not today')\n"
INTERRUPTED = "\ndef test_late(record):\n    raise KeyboardInterrupt\n"
DYING = "\ndef test_dying(record):\n    os._exit(9)\n"


@pytest.fixture
def run(tmp_path):
    def run(tests, *options, conftest=CONFTEST):
        (tmp_path / "conftest.py").write_text(conftest)
        (tmp_path / "test_mini.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        root = Path(__file__).parents[2]
        paths = [str(root), *filter(None, sys.path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done, read_run(tmp_path / "results" / "mini.jsonl")

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_every_case_is_in_the_stream_and_the_table(run, options):
    done, found = run(TESTS + FAILING, *options)
    outcomes = {case.check: case.outcome for case in found.cases}
    passing = dict.fromkeys((f"sound-{number}" for number in range(4)), "pass")
    assert outcomes == passing | {"skipped": "skip", "broken": "fail"}
    assert done.returncode == 1 and not found.footer.passed
    assert "FAILED: 4 pass, 1 fail, 1 skip" in done.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_sound_run_passes(run, options):
    done, found = run(TESTS, *options)
    assert done.returncode == 0 and found.footer.passed and len(found.cases) == 5


@pytest.mark.parametrize("silent", [SILENT, SKIPPING], ids=["passes", "skips itself"])
def test_a_test_that_records_nothing_fails_and_is_an_error(run, silent):
    done, found = run(TESTS + silent)
    (case,) = [case for case in found.cases if not case.passes]
    assert done.returncode == 1 and case.outcome == "error" and "test_silent" in case.check
    assert case.reason == "a test of this suite must record a case"


def test_a_worker_that_dies_is_an_error(run):
    done, found = run(TESTS + DYING, "-n", "2")
    (case,) = [case for case in found.cases if not case.passes]
    assert done.returncode == 1 and case.outcome == "error" and "test_dying" in case.check


def test_an_interrupted_run_shows_no_older_runs_table(run):
    run(TESTS)
    done, found = run(TESTS + INTERRUPTED)
    assert found.footer.passed, "the older run's stream is left in place"
    assert done.returncode == 2 and "PASSED" not in done.stdout


@pytest.mark.parametrize("option", ["--help", "--fixtures", "--collect-only"])
def test_a_run_without_tests_leaves_older_results(run, tmp_path, option):
    run(TESTS)
    before = sorted((tmp_path / "results").iterdir())
    done, found = run(TESTS, option)
    assert done.returncode == 0 and found.footer.passed and len(found.cases) == 5
    assert sorted((tmp_path / "results").iterdir()) == before


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_an_observed_test_ends_as_its_case_does(run, options):
    done, found = run(OBSERVED, *options, conftest=OBSERVING)
    assert {case.check: case.outcome for case in found.cases} == {
        "sound": "pass",
        "broken": "fail",
        "known-and-there": "known",
        "known-and-gone": "fail",
    }
    assert done.returncode == 1 and "2 failed, 1 passed, 1 xfailed" in done.stdout
    assert "an issue no longer shows: remove it" in done.stdout


def test_a_table_has_a_row_for_each_fixture_and_the_reasons_follow(run, tmp_path):
    done, found = run(IN_TABLE, conftest=TABLED)
    table = "| model | fp32 | fp16 |\n|---|---|---|\n| exp |  | pass |\n| log | fail |  |\n"
    reasons = (
        "mini/round[log,fp32,-]: wrong\n"
        "mini/setup of test_mini.py::test_unprepared[-,-,-]: test: the library is not installed: "
        "install it\n"
    )
    assert f"{table}\n{reasons}3 cases came\nFAILED: 1 pass, 1 fail, 1 error" in done.stdout
    assert done.returncode == 1 and len(found.cases) == 3
    assert (tmp_path / "results" / "page.md").read_text() == table
