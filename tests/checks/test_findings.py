"""The table of findings is true of the code, and one cause is told once."""

import json
import re
from pathlib import Path

import pytest

import harness
from harness.checks import Check, artifact_checks, core_ml_checks, run_check, value_checks
from harness.checks.findings import (
    ANY_CHECK,
    SECTIONS,
    SEVERITIES,
    causes_only,
    markdown,
    read_known_defects,
    rows,
)
from harness.cli import main
from harness.cli.recording import finding_lines
from harness.errors import HarnessError
from harness.measure.measurements import MEASUREMENTS
from harness.results import Case, Figure, Finding, RecordedFinding

ROOT = Path(harness.__file__).parent
SOURCES = (
    *ROOT.glob("checks/*.py"),
    *ROOT.glob("artifact/hazards/*.py"),
    *ROOT.glob("measure/*.py"),
    *ROOT.glob("divergence/*.py"),
    ROOT / "suites/options/judge.py",
    ROOT / "results/findings.py",
)
CODE = re.compile(r'"([A-Z]\d\d)"')
SOURCE = re.compile(r"(ET|CT|onnxsim|Core ML:|rule:|third-party measurement:) \S.*")


def test_every_row_is_a_code_of_a_check_and_says_what_is_wrong_and_what_to_do():
    checks = {
        *artifact_checks(),
        *value_checks(),
        *core_ml_checks(),
        "agreement",
        "options",
        "bisect",
        ANY_CHECK,
    }
    checks |= {check.name for check in MEASUREMENTS}
    parts = {part for row in rows().values() for part in row.breaks}
    for code, row in rows().items():
        assert re.fullmatch(r"[A-Z]\d\d", code) and code[0] in SECTIONS
        assert row.check in checks and row.severity in SEVERITIES
        assert all(SOURCE.fullmatch(one) for one in row.source.split("; ")), (code, row.source)
        assert all(re.fullmatch(r"\S.{,398}\.", text) for text in (row.sentence, row.remedy)), code
        assert parts.issuperset(row.rests_on), f"{code} rests on a part that nothing breaks"


def test_every_row_is_found_by_code_and_every_code_has_a_row():
    used = {code for path in SOURCES for code in CODE.findall(path.read_text("utf-8"))}
    assert used == set(rows())


def test_every_check_has_a_row():
    named = {row.check for row in rows().values()}
    measured = {"latency", "memory", "greedy-prompts"}  # figures without bounds; rows of `greedy`
    assert {*artifact_checks(), *value_checks(), *core_ml_checks()} <= named | measured


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"ok": False}, "parity found '', a code that"),
        ({"figures": {"error": Figure(2.0, bound=1.0)}}, "parity found '', a code that"),
        ({"code": "N99"}, "parity found 'N99', a code that"),
        ({"ok": False, "code": "W01"}, "W01 is a finding of weights, not of parity"),
        ({"ok": False, "code": "N10", "warning": True}, "N10 must be a failure"),
    ],
)
def test_a_finding_that_contradicts_the_table_is_a_bug_of_its_check(given, problem):
    found = [Finding("parity", "here", message="is off", comparisons=1, **given)]
    case = run_check(Check("parity", lambda subject: found), None, suite="test")
    assert case.outcome == "error" and case.traceback and problem in case.reason


def test_a_recorded_finding_says_what_its_row_says():
    found = [Finding("parity", "decode", False, "is off", 1, code="N10")]
    (recorded,) = run_check(Check("parity", lambda subject: found), None, suite="test").findings
    assert recorded.to_json() == {
        "code": "N10",
        "place": "decode",
        "evidence": "is off",
        "warning": False,
        "meaning": rows()["N10"].sentence,
        "remedy": rows()["N10"].remedy,
    }


def test_the_page_is_made_of_the_table(capsys):
    assert main(["findings", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert page == markdown() == (ROOT.parent / "docs/findings.md").read_text("utf-8")


def test_a_code_is_explained(capsys):
    assert main(["findings", "M02"]) == 0
    out = capsys.readouterr().out
    assert rows()["M02"].remedy in out and "found by  metadata-names" in out
    assert main(["findings", "m02"]) == 0
    assert capsys.readouterr().out.startswith("M02  ")
    assert main(["findings", "h"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) > 5 and all(line.startswith("H") for line in listed)
    assert main(["findings", "weights", "--json"]) == 0
    assert {row["check"] for row in json.loads(capsys.readouterr().out)} == {"weights"}
    assert main(["findings", "M020"]) == 2
    assert "did you mean 'M" in capsys.readouterr().err
    assert main(["findings", "wieghts"]) == 2
    assert "did you mean 'weights'?" in capsys.readouterr().err
    assert main(["findings", "Z99"]) == 2
    assert "no finding has the code 'Z99'" in capsys.readouterr().err


def failed(check, *findings, outcome="fail", **given):
    stage = {"stage": "check"} if outcome == "error" else {}
    reason = "; ".join(finding.sentence for finding in findings)
    return Case("t", check, outcome=outcome, reason=reason, findings=findings, **stage, **given)


BECAUSE = "because of A01 that references found"
ORDER = RecordedFinding("M02", "method 'forward', package 0, function 'main'", "the order is x")
WRONG = RecordedFinding("N10", "decode", "decode error is 2")


def test_what_rests_on_a_broken_part_is_skipped_because_of_its_cause():
    cause, effect = causes_only([failed("metadata-names", ORDER), failed("parity", WRONG)])
    assert cause.findings == (ORDER,) and cause.outcome == "fail"
    assert (effect.outcome, effect.reason) == ("skip", f"because of M02 in {ORDER.place}")


def test_an_error_that_checks_share_is_told_once():
    damaged = RecordedFinding("A01", "", "the key is missing")
    cases = [failed(name, damaged, outcome="error") for name in ("references", "owners")]
    first, second = causes_only(cases)
    assert (first.outcome, second.outcome, second.reason) == ("error", "skip", BECAUSE)


@pytest.mark.parametrize(
    "other",
    [
        RecordedFinding("W01", "method 'forward'", "differ from the checkpoint's"),
        RecordedFinding("M03", "method 'forward', package 1, function 'main'", "passes float64"),
        RecordedFinding("A11", "package 0, weight.bin", "ends in garbage"),
    ],
)
def test_another_cause_is_not_hidden(other):
    cases = [failed("metadata-names", ORDER), failed("other", other)]
    assert list(causes_only(cases)) == cases


def test_a_case_keeps_what_is_its_own():
    here = RecordedFinding("M03", "method 'forward', package 0", "passes float64")
    there = RecordedFinding("M03", "method 'forward', package 1", "passes float64")
    (case,) = causes_only([failed("metadata-names", ORDER, here, there)])
    assert case.outcome == "fail" and case.findings == (ORDER, there)
    assert case.reason.endswith(f"the rest is because of M02 in {ORDER.place}")


def test_a_known_defect_and_a_warning_explain_nothing():
    known = Case("t", "metadata-names", outcome="known", issue="x", reason="y", findings=(ORDER,))
    parity = failed("parity", WRONG)
    assert list(causes_only([known, parity])) == [known, parity]


CRASHED = RecordedFinding("N03", "", "the process died")
WRONG_TOKEN = RecordedFinding("N12", "prompt 0", "chooses 3, not 7")


@pytest.mark.parametrize("found", [CRASHED, WRONG, RecordedFinding("N01", "", "no method")])
def test_a_fault_of_one_runtime_does_not_hide_that_of_another(found):
    cases = [
        failed("parity", found, runtime="coreml:cpu_and_ne"),
        failed("greedy", WRONG_TOKEN, runtime="mil:strict"),
        failed("greedy", WRONG_TOKEN, runtime="coreml:cpu_and_ne"),
    ]
    assert [case.outcome for case in causes_only(cases)] == ["fail", "fail", "skip"]


@pytest.mark.parametrize(("runtime", "outcome"), [("mil:widen", "skip"), ("coreml", "fail")])
def test_a_check_without_a_runtime_has_the_numbers_of_our_executor(runtime, outcome):
    nan = RecordedFinding("N18", "method 'forward'", "9 of 9 numbers are NaN")
    cases = [failed("parity", WRONG, runtime=runtime), failed("fp16-range", nan)]
    assert [case.outcome for case in causes_only(cases)] == ["fail", outcome]


@pytest.mark.parametrize("numbers", [WRONG, RecordedFinding("N05", "", "the reference overflows")])
def test_wrong_numbers_do_not_hide_the_overflow_that_made_them(numbers):
    over = RecordedFinding("N17", "activations", "3 of 9 operations exceed fp16's 65504")
    cases = [failed("parity", numbers, runtime="mil:strict"), failed("fp16-range", over)]
    assert list(causes_only(cases)) == cases


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('code = "H99"', "an issue: no finding has the code 'H99': see `harness findings`"),
        ('code = "H42"\ncheck = "weights"', "H42 is a finding of hazards, not of weights"),
        ('code = "N07"', "many checks find N07: name the one that does, as `check`"),
    ],
)
def test_a_known_defect_has_a_code_of_its_check(tmp_path, row, problem):
    file = tmp_path / "known.toml"
    for good, check in (('code = "H42"', "hazards"), ('code = "N07"\ncheck = "types"', "types")):
        file.write_text(f'[[known]]\nissue = "an issue"\n{good}\n')
        assert [one.check for one in read_known_defects(file)] == [check]
    file.write_text(f'[[known]]\nissue = "an issue"\n{row}\n')
    with pytest.raises(HarnessError, match=re.escape(problem)) as caught:
        read_known_defects(file)
    assert str(caught.value).startswith(f"{file}: an issue: ")


@pytest.mark.parametrize("code", ["N02", "N03", "N04"])
def test_equal_words_about_different_things_are_told_each_time(code):
    equal = RecordedFinding(code, "", "nothing was compared")
    cases = [failed("owners", equal), failed("types", equal)]
    assert list(causes_only(cases)) == cases


def test_an_unused_part_of_the_file_hides_nothing():
    unused = RecordedFinding("S06", "segment 3", "nothing uses these 64 bytes; leave them out")
    cases = [
        failed("copies", unused),
        failed("weights", RecordedFinding("W05", "", "the program has no attention")),
        failed("roles", RecordedFinding("N01", "", "no method takes 'tokens'")),
    ]
    assert [case.outcome for case in causes_only(cases)][:2] == ["fail", "fail"]
    assert list(causes_only([cases[0], cases[2]])) == [cases[0], cases[2]]


def test_a_partly_explained_case_has_a_short_reason_too():
    own = [RecordedFinding("A11", f"package {n}", "x" * 1000) for n in range(30)]
    *_, case = causes_only([failed("metadata-names", ORDER), failed("mixed", WRONG, *own)])
    assert len(case.findings) == 30 and len(case.reason) < 5000
    assert "; and 20 more; the rest is because of M02" in case.reason


def test_a_warning_of_a_skipped_case_is_listed():
    warning = RecordedFinding("H30", "function 'main'", "casts ids", warning=True)
    mixed = failed("parity", WRONG, warning)
    cases = list(causes_only([failed("metadata-names", ORDER), mixed]))
    assert cases[1].outcome == "skip"
    assert any("casts ids" in line for line in finding_lines(cases, warnings=True))


def test_many_findings_of_many_places_take_no_time():
    def wrong(code, count):
        return [
            Finding("types", f"function 'f{n}'", False, f"a{n} {'x' * 5000}", 1, code=code)
            for n in range(count)
        ]

    case = run_check(Check("types", lambda subject: wrong("A50", 20_000)), None, suite="test")
    (found,) = case.findings
    assert found.count == 20_000 and case.seconds < 20
    effect = failed("parity", RecordedFinding("N10", "function 'f1'", "is off"))
    assert [one.outcome for one in causes_only([case, effect])] == ["fail", "skip"]
