"""The drawings of a run, and cases made of findings."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.report import run_table
from harness.results import Figure, Finding, case_from_findings, read_run
from tests.results.runs import PARITY, SKIPPED, write_run

HOSTILE = '<script>alert("x")</script>&\x1b[31m\x00'
FAILED = replace(PARITY, check="greedy", outcome="fail", reason=HOSTILE, figures={})
CRASHED = replace(
    PARITY, check="reload", outcome="crash", signal="SIGSEGV", reason="it died", figures={}
)
TIMED_OUT = replace(CRASHED, check="wait", outcome="timeout", signal="")


@pytest.fixture
def run(tmp_path):
    return read_run(write_run(tmp_path / "run.jsonl", PARITY, SKIPPED, FAILED, CRASHED, TIMED_OUT))


def test_junit_has_every_case_and_its_outcome(run, tmp_path):
    status = main(["report", str(tmp_path / "run.jsonl"), "-o", str(tmp_path / "out")])
    assert status == 1, "the run that is drawn has failed"
    root = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert root.get("tests") == "5"
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("1", "2", "1")
    elements = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert "failure" in elements[FAILED.id] and "error" in elements[CRASHED.id]
    assert "skipped" in elements[SKIPPED.id]


def test_the_page_escapes_what_a_result_says(run, tmp_path):
    main(["report", str(tmp_path / "run.jsonl"), "-o", str(tmp_path / "out")])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert "\x1b" not in page and "\x00" not in page


def test_the_page_shows_what_failed_first(run, tmp_path):
    main(["report", str(tmp_path / "run.jsonl"), "-o", str(tmp_path / "out")])
    page = (tmp_path / "out" / "index.html").read_text()
    shown = [page.index(f'<span class="{name}">') for name in ("crash", "fail", "skip", "pass")]
    assert max(shown[:2]) < min(shown[2:])


def test_the_table_fits_however_long_the_names_and_reasons(tmp_path):
    long = replace(
        FAILED,
        **{part: part * 25 for part in ("suite", "check", "fixture", "mode", "runtime")},
        reason="a long sentence " * 300,
        figures={"figure" * 40: Figure(1.0, "unit" * 10, 1e-5)},
    )
    table = run_table(read_run(write_run(tmp_path / "run.jsonl", long)))
    assert max(map(len, table.splitlines())) <= 120


def test_a_figure_outside_its_bound_is_shown_before_the_others(tmp_path):
    figures = {f"good {index}": Figure(0.5, "", 1.0) for index in range(3)}
    case = replace(FAILED, figures=figures | {"bad": Figure(2.0, "", 1.0)})
    table = run_table(read_run(write_run(tmp_path / "run.jsonl", case)))
    assert "bad 2 (<= 1)" in table and "good 2" not in table


def test_the_table_fits_and_tells_what_failed(run):
    table = run_table(run)
    assert max(map(len, table.splitlines())) <= 120
    assert "FAILED" in table and "1 crash" in table and "\x1b" not in table
    assert "2e-07 (<= 1e-05)" in table
    assert "\x1b[" in run_table(run, colours=True)


def case(*findings):
    return case_from_findings(findings, suite="s", check="c")


def test_findings_make_a_case():
    made = case(
        Finding("c", "a", comparisons=2, figures={"error": Figure(0.5, bound=1.0)}),
        Finding("c", "b", comparisons=3, figures={"error": Figure(0.25, bound=1.0)}),
    )
    assert made.outcome == "pass" and made.comparisons == 5
    assert {name: f.value for name, f in made.figures.items()} == {"error@a": 0.5, "error@b": 0.25}


def test_scalars_of_numpy_become_what_json_knows():
    made = case(Finding("c", "a", comparisons=1, facts={"size": np.int64(3), "tied": np.True_}))
    assert json.dumps(made.to_json()["facts"]) == '{"size": 3, "tied": true}'


def test_two_findings_of_one_name_at_one_place_are_refused():
    twice = [Finding("c", "a", comparisons=1, facts={"size": value}) for value in (1, 2)]
    with pytest.raises(HarnessError, match="both name size"):
        case(*twice)


@pytest.mark.parametrize(
    ("findings", "reason"),
    [
        ([], "nothing was compared"),
        ([Finding("c", "a", comparisons=0)], "nothing was compared"),
        ([Finding("c", "a", False, "is wrong", 1)], "a: is wrong"),
        ([Finding("c", "a", True, "", 1, {"e": Figure(2.0, bound=1.0)})], "e is 2 (<= 1)"),
        ([Finding("c", "a", True, "", 1, {"e": Figure(float("nan"), bound=1.0)})], "e is nan"),
    ],
)
def test_findings_that_make_a_failure(findings, reason):
    made = case(*findings)
    assert made.outcome == "fail" and reason in made.reason
