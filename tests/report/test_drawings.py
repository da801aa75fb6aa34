"""The drawings of a run, and cases made of findings."""

import base64
import hashlib
import io
import json
import math
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from harness.checks import artifact_checks, core_ml_checks, value_checks
from harness.checks.findings import explained, rows
from harness.cli import main
from harness.errors import HarnessError
from harness.measure.measurements import MEASUREMENTS
from harness.report import badge, case_table, junit_xml, run_table, table_width
from harness.report.commands import repeat_command
from harness.report.drawings import pieces, share_of_bound
from harness.report.page import ShownCase
from harness.report.run_page import _connected, html_page
from harness.results import (
    Figure,
    Finding,
    RecordedFinding,
    case_from_findings,
    read_run,
    reason_of,
)
from harness.text import clip
from tests.results.runs import HEADER, PARITY, SKIPPED, write_run

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
    assert page.count("<script") == 1 and "&lt;script&gt;" in page.replace("<wbr>", "")
    assert "\x1b" not in page and "\x00" not in page


def test_the_page_allows_its_own_style_and_script_alone(run):
    page = html_page(run)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for kind in ("style", "script"):
        (source,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"<[^>]* (style|on\w+)=", page) and "http" not in page.split("<body>")[1]


def drawn(tmp_path, *cases, header=HEADER):
    run = write_run(tmp_path / "drawn.jsonl", *cases, header=header)
    main(["report", str(run), "-o", str(tmp_path / "out")])
    return (tmp_path / "out" / "index.html").read_text()


def test_the_page_shows_what_failed_first(tmp_path):
    page = drawn(tmp_path, SKIPPED, PARITY, FAILED, CRASHED)
    order = ("Failures</h2>", "Every check</h2>", "Skipped</h2>", "Passed</h2>")
    shown = [page.index(title) for title in order]
    assert shown == sorted(shown)
    assert "Failed</strong>: 2 of 3 checks failed, on 1 of 1 subject (" in page
    rows = re.findall(r'<th scope="row">(\S*) ', page)
    assert rows == ["reload", "greedy", "parity"]
    assert page.count(' open>\n<summary><span class="o-fail">') == 1


def test_the_page_folds_skips_by_their_reason(tmp_path):
    skips = [replace(SKIPPED, check=f"c{number}") for number in range(3)]
    page = drawn(tmp_path, PARITY, *skips, replace(SKIPPED, check="d", reason="too <old>"))
    titles = re.findall(r'<details class="group" id="skip-\d+"><summary>(.*?)</summary>', page)
    titles = [re.sub("<[^>]*>", "", title) for title in titles]
    assert titles == ["not here (3)", "too &lt;old&gt; (1)"]
    assert "Not in the table, because all of it was skipped: executorch" in page


def test_every_cell_and_link_of_the_page_leads_somewhere(run):
    page = html_page(run)
    anchors = re.findall(r' id="([^"]*)"', page)
    targets = set(re.findall(r'href="#([^"]*)"', page))
    assert len(anchors) == len(set(anchors)) and targets and targets <= set(anchors)


def test_a_matrix_of_many_subjects_has_a_row_for_each(tmp_path):
    subjects = [replace(PARITY, fixture=f"m{number}") for number in range(4)]
    bad = replace(FAILED, fixture="m2", check="greedy")
    page = drawn(tmp_path, *subjects, bad, replace(SKIPPED, fixture="m1"))
    assert re.findall(r'<th scope="row">(.*?)</th>', page) == [
        f"m{number} single" for number in (2, 0, 1, 3)
    ]


def test_subjects_without_a_check_in_common_have_two_matrices_and_what_fails_is_first(tmp_path):
    """A long one shows what fails, and folds the rest; its column that fails comes first."""
    many = [replace(PARITY, fixture=f"m{number}") for number in range(70)]
    bad = replace(FAILED, fixture="m69", check="greedy")
    other = replace(PARITY, fixture="other", check="program", runtime="-")
    skipped = replace(other, check="sharing-size", outcome="skip", reason="needs another")
    page = drawn(tmp_path, *many, bad, other, skipped).split('id="matrix"')[1]
    assert re.findall(r"<details( open)?><summary>(.*?)</summary>", page)[:3] == [
        (" open", "1 subject"),
        (" open", "2 checks"),
        ("", "69 subjects"),
    ]
    first = page[: page.index("</table>")]
    assert re.findall(r'title="(.*?)"', first) == ["greedy", "parity"] and "m69" in first
    assert 'sharing-size other single: skip">\u2013</a>' in page


def test_colours_mean_one_runtime_and_what_is_off_the_scale_is_said(tmp_path):
    """A skipped runtime takes no colour from the others; 1e3 is the end of the axis."""
    strict = replace(FAILED, runtime="mil:strict", figures={"a": Figure(4.8, bound=1e-5)})
    timed = {"decode": Figure(1.0, "ms", spread=0.5)}
    widen = replace(PARITY, figures=timed)
    page = drawn(tmp_path, strict, widen, replace(SKIPPED, runtime="coreml")).split("id=")
    errors, times = (
        next(part for part in page if part.startswith(f'"{name}"')) for name in ("errors", "times")
    )
    assert 'key s0">\u25cf mil:strict' in errors and 'key s1">\u25cf mil:widen' in times
    assert "off scale" in errors and "480,000 times" in errors
    assert "Check that the artifact chooses the oracle" in "".join(page).replace("<wbr>", "")


DECIBELS = {"unit": "dB", "better": "higher"}


@pytest.mark.parametrize(
    ("figure", "share"),
    [
        (Figure(0.5, bound=2.0), 0.25),
        (Figure(0.0, bound=2.0), 0.0),
        (Figure(4.0, bound=1.0, better="higher"), 0.25),
        (Figure(0.0, bound=1.0, better="higher"), math.inf),
        (Figure(80.0, bound=60.0, **DECIBELS), 0.1),  # ten times smaller an error
        (Figure(40.0, bound=60.0, **DECIBELS), 10.0),
        (Figure(math.nan, bound=1.0), math.inf),
        (Figure(1.0), None),
        (Figure(1.0, bound=1.0, better="exact"), None),
        (Figure(1.0, bound=0.0), None),
    ],
)
def test_a_figure_takes_a_share_of_its_bound(figure, share):
    assert share_of_bound(figure) == (share if share is None else pytest.approx(share))


def test_the_errors_are_drawn_where_they_are(tmp_path):
    """A bound at the right edge but one power of ten: a hundredth of it is two powers left."""
    figures = {"a": Figure(1e-4, bound=1e-2), "b": Figure(3.0, bound=1.0), "c": Figure(9.0)}
    case = replace(FAILED, figures=figures)
    page = drawn(tmp_path, case)
    dots = re.findall(r'<circle cx="([\d.]+)%".*?<title>.*?: (\w) ', page)
    assert {name: float(x) for x, name in dots} == {
        "a": pytest.approx(1, abs=0.06),
        "b": pytest.approx(1 + 98 * (2 + math.log10(3)) / 3, abs=0.06),
    }
    assert re.search(r'x1="66.3%" x2="66.3%".*?class="bound"', page)


def test_the_dots_of_each_runtime_have_a_lane_apart_from_the_labels(tmp_path):
    """Letters of 12 px reach 11 px above their line, and 3 px below it."""
    names = ("mil:double", "mil:strict", "mil:widen", "executorch")
    figures = {"a": Figure(0.5, bound=1.0), "b": Figure(0.25, bound=1.0)}
    cases = [replace(PARITY, runtime=name, figures=figures) for name in names]
    page = drawn(tmp_path, *cases).split('id="errors"')[1].split("</svg>")[0]
    labels = [int(y) for y in re.findall(r'<a href[^>]*><text x="1%" y="(\d+)"', page)]
    dots = [float(y) for y in re.findall(r'cy="([\d.]+)" r="3"', page)]
    assert len(labels) == 2 and len(set(dots)) == len(dots) == 8
    below = [dot - 3 - max(y for y in labels if y < dot) - 3 for dot in dots]
    above = [y - 11 - dot - 3 for y in labels[1:] for dot in dots if dot < y]
    assert min(below) >= 5 and min(above) > min(below)


def test_weights_are_areas_by_package_and_functions(tmp_path):
    facts = {
        "package 0 forward, prefill weight bytes": 300,
        "package 1 forward weight bytes": 50,
        "package 1 forward, prefill weight bytes": 50,
        "weight bytes": 400,
    }
    page = drawn(tmp_path, replace(PARITY, check="copies", mode="multifunction", facts=facts))
    assert "400 bytes of weights, 88 % shared; without sharing 750 bytes" in page.replace(
        "<wbr>", ""
    )
    assert re.findall(r'<svg x="[\d.]+%" width="([\d.]+)%">', page) == ["75.00", "25.00"]
    assert page.count('class="block shared"') == 2 and page.count('class="block own"') == 1


def test_a_line_of_the_page_ends_within_no_word():
    """A long name may break after its punctuation, a number nowhere."""
    assert pieces("2e-07 of int64[3,3]") == ["2e-07 of int64[3,3]"]
    assert pieces("a decode_kv_cache\0 b") == ["a decode_", "kv_", "cache\\", "x00 b"]
    assert "|".join(pieces("decode_kv_cache_specs")) == "decode_|kv_|cache_|specs"
    assert "|".join(pieces("executorch@1.5.1:tiny")) == "executorch@|1.|5.|1:|tiny"
    assert pieces("f" * 64) == ["f" * 64]


BY_151 = replace(HEADER, exporters={"executorch": {"executorch": "1.5.1"}})
REPEATED = [
    (
        PARITY,
        HEADER,
        "conformance --fixture tiny --mode single --runtime mil:widen"
        " -k '[tiny-single-mil:widen-parity]'",
    ),
    (
        replace(PARITY, check="weight-sharing", fixture="coreml:tiny+b4w", runtime="-"),
        HEADER,
        "conformance --fixture tiny+b4w --exporter coreml --mode single"
        " -k '[coreml:tiny+b4w-single-weight-sharing]'",
    ),
    (
        replace(PARITY, suite="check"),
        replace(HEADER, typed=("a b.pte", "--checkpoint", "../c.safetensors", "--seed", "3")),
        "check 'a b.pte' --checkpoint ../c.safetensors --seed 3 --runtime mil:widen --check parity",
    ),
    (
        replace(PARITY, suite="check", check="latency"),
        replace(HEADER, typed=("m.pte",), options={"measure": True}),
        "check m.pte --runtime mil:widen --measure",
    ),
    (
        PARITY,
        replace(HEADER, options={"strict": True}),
        "conformance --fixture tiny --mode single --runtime mil:widen --strict-findings"
        " -k '[tiny-single-mil:widen-parity]'",
    ),
    (
        replace(PARITY, suite="bisect"),
        replace(HEADER, typed=("m.pte", "--inputs", "i.pt"), options={"inputs": True}),
        "bisect m.pte --inputs i.pt",
    ),
    (
        replace(PARITY, suite="check"),
        BY_151,
        "check executorch@1.5.1:tiny/single --runtime mil:widen --check parity",
    ),
    (
        replace(PARITY, suite="check", fixture="it's a $(file).pte", mode="-"),
        replace(HEADER, options={"compared with": ["checkpoint"]}),
        "check 'it'\"'\"'s a $(file).pte' --checkpoint CHECKPOINT --params PARAMS"
        " --runtime mil:widen --check parity",
    ),
]


@pytest.mark.parametrize(("case", "header", "command"), REPEATED)
def test_the_page_has_the_command_that_repeats_a_case(tmp_path, case, header, command):
    assert (
        unescape(drawn(tmp_path, case, header=header)).count(f"<pre>harness {command}</pre>") == 1
    )


@pytest.mark.parametrize("name", [one.name for one in MEASUREMENTS])
def test_a_measurement_is_repeated_by_measuring(name):
    case = replace(PARITY, suite="check", check=name, runtime="-")
    assert (
        repeat_command(case, replace(HEADER, typed=("m.pte",))) == "harness check m.pte --measure"
    )


def test_the_command_that_repeats_a_case_of_conformance_finds_it_alone():
    """pytest's words match parts of names; one collection answers for all cases."""
    command = [sys.executable, "-m", "harness", "conformance", "--collect-only", "-q"]
    makers = ["--exporter", "executorch", "--exporter", "coreml"]
    done = subprocess.run(
        [*command, "--fixture", "tiny", *makers], capture_output=True, text=True, check=True
    )
    tests = [line.lower() for line in done.stdout.splitlines() if "::" in line]
    header = replace(HEADER, exporters={"executorch": {}, "coreml": {}})
    for check, runtime in [
        ("weights", "-"),
        ("weight-sharing", "-"),
        ("parity", "mil:strict"),
        ("text", "mil:widen"),
        ("grammar", "mil:widen"),
        ("agreement", "mil:strict"),
    ]:
        case = replace(PARITY, check=check, fixture="coreml:tiny", runtime=runtime)
        words = shlex.split(repeat_command(case, header))
        said = words[words.index("-k") + 1]
        parts = [part.rpartition("not ") for part in said.split(" and ")]
        found = [t for t in tests if all((word in t) != bool(no) for _, no, word in parts)]
        assert len(found) == 1, (said, found)
        named = [two for one, two in pairwise(words) if one == "--exporter"]
        assert named == (["executorch", "coreml"] if check == "agreement" else ["coreml"])


def test_the_table_fits_however_long_the_names_and_reasons(tmp_path):
    long = replace(
        FAILED,
        **{part: part * 25 for part in ("suite", "check", "fixture", "mode", "runtime")},
        reason="a long sentence " * 300,
        figures={"figure" * 40: Figure(1.0, "unit" * 10, 1e-5)},
    )
    table = run_table(read_run(write_run(tmp_path / "run.jsonl", long)))
    assert max(map(len, table.splitlines())) <= 120


@pytest.mark.parametrize("width", [99, 80])
def test_a_narrow_table_has_its_groups_as_headings(run, width):
    lines = run_table(run, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["check", "outcome", "figure", "against", "bound"]
    for case in run.cases:
        group = ", ".join(n for n in (case.fixture, case.mode, case.runtime) if n != "-")
        assert clip(group, width) in lines
        below = [*lines[lines.index(clip(group, width)) + 1 :], ""]
        rows = [line.split()[:2] for line in below[: below.index("")]]
        assert [clip(case.check, 30), case.outcome] in rows


@pytest.mark.parametrize("width", [65, 40])
def test_a_narrower_table_has_figures_below_their_checks_and_cuts_none(tmp_path, width):
    long = replace(PARITY, check="a-check-of-more-than-thirty-letters", figures={})
    figures = {"error of logits": Figure(2e-7, bound=1e-5), "decode": Figure(3.0, "ms/token")}
    of_figures = replace(FAILED, figures=figures)
    lines = case_table([long, of_figures], width=width).splitlines()
    assert max(map(len, lines)) <= width and lines[0].split() == ["check", "outcome"]
    assert any(line.split() == [clip(long.check, min(width - 11, 30)), "pass"] for line in lines)
    below = lines[[line.split() for line in lines].index(["greedy", "fail"]) + 1 :]
    said = "error of logits 2e-07 (<= 1e-05); decode 3 ms/token"
    assert " ".join(" ".join(below).split()) == said
    assert all(line.startswith("  ") for line in below)


def test_a_table_is_as_wide_as_the_terminal_up_to_120_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table_width(io.StringIO()) == 120
    for given, wanted in (("80", 80), ("200", 120), ("3", 40)):
        monkeypatch.setenv("COLUMNS", given)
        assert table_width(io.StringIO()) == wanted


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


def test_a_place_is_told_by_the_first_of_its_figures_outside_a_bound():
    def error(value):
        return {
            "error": Figure(value, bound=1.0),
            "in decibels": Figure(-value, "dB", -1.0, "higher"),
        }

    findings = [Finding("c", where, comparisons=1, figures=error(9.0)) for where in ("a", "b")]
    assert case(*findings).reason == (
        "a: error@a is 9 (<= 1), and 1 more of its figures miss their bounds; "
        "b: error@b is 9 (<= 1), and 1 more of its figures miss their bounds"
    )


def test_a_finding_is_drawn_with_its_code_places_evidence_and_remedy(tmp_path):
    wrong = RecordedFinding("M02", "delegate 0", "the order is x", count=2, others=("delegate 1",))
    warned = RecordedFinding("H04", "exp 'y'", "nothing bounds its argument", True)
    wrong, warned = explained(wrong), explained(warned)
    cases = [
        replace(PARITY, outcome="fail", reason=wrong.sentence, findings=(wrong,)),
        replace(PARITY, mode="multifunction", findings=(warned,)),
    ]
    run = read_run(write_run(tmp_path / "run.jsonl", *cases))
    page, junit, table = html_page(run), junit_xml(run), run_table(run)
    for drawing in (page, junit):
        text = unescape(drawing.replace("<wbr>", ""))
        assert "2 places: delegate 0; delegate 1" in text and "the order is x" in text
        assert rows()["M02"].remedy in text and rows()["H04"].sentence in text
    assert "M02 delegate 0: the order is x (and in 1 more place)" in table
    assert table.index("WARNING") < table.index("FAIL ") and ", 1 warning;" in table


def test_a_case_repeats_no_code_that_its_title_has():
    """The title of failures is a code with its meaning, that of known defects a reason."""
    wrong = explained(RecordedFinding("M02", "delegate 0", "the order is x"))
    failed = replace(PARITY, outcome="fail", reason=wrong.sentence, findings=(wrong,))
    plain = RecordedFinding("", "", "of another suite")
    known = replace(failed, outcome="known", issue="issue 1")
    for case, repeats in (
        (failed, False),
        (replace(failed, findings=(plain, wrong)), False),
        (replace(failed, findings=(wrong, wrong)), True),
        (known, True),
    ):
        found = ShownCase(case, "a", HEADER).findings
        assert [parts["place"] for parts in found] == ["delegate 0"] * len(found)
        assert [f"M02 {wrong.meaning}" == parts.get("M02") for parts in found] == [
            repeats for _ in found
        ]


def test_a_case_with_more_findings_than_a_record_holds_says_how_many_failed(tmp_path):
    """30 findings: 25 are in the record, 10 in the reason."""
    many = [explained(RecordedFinding("M02", f"place {n}", "wrong " * 9)) for n in range(30)]
    reason = reason_of([one.sentence for one in many])
    failed = replace(PARITY, outcome="fail", reason=reason, findings=tuple(many))
    page = drawn(tmp_path, failed).replace("<wbr>", "")
    assert "place 24" in page and "place 25" not in page and "and 20 more</p>" in page
    page = drawn(tmp_path, replace(failed, findings=tuple(many[:24]))).replace("<wbr>", "")
    assert "and 20 more" not in page


TIMES = {
    "decode at 40 tokens": Figure(2.0, "ms/token", spread=1.0),
    "decode at 80 tokens": Figure(4.0, "ms/token", spread=1.0),
    "load": Figure(8.0, "ms", spread=2.0),
}


def test_times_are_drawn_with_their_spread_and_by_depth(tmp_path):
    page = drawn(tmp_path, replace(PARITY, check="latency", figures=TIMES))
    times = page.split('id="times"')[1].split("</section>")[0]
    assert re.findall(r'<line x1="([\d.]+)%" x2="([\d.]+)%"[^>]*class="range', times) == [
        ("78.60", "98.00"),  # 1 + 97 * 8 / 10
        ("12.00", "12.00"),
        ("96.00", "96.00"),
    ]
    assert "40 tokens: 2 to 3 ms/token" in times and "decode, tiny single" in times


def test_times_and_figures_that_are_not_drawn_are_counted(tmp_path):
    """A drawing has 60 times, a history 40 figures."""
    times = {f"call {n}": Figure(1.0, "ms", spread=0.5) for n in range(1062)}
    measured = replace(PARITY, check="latency", figures=times)
    page = drawn(tmp_path, measured).replace("<wbr>", "")
    assert "1,002 more times are left out." in page
    files = [write_run(tmp_path / name, measured) for name in ("now", "old")]
    page = html_page(read_run(files[0]), [read_run(files[1])]).replace("<wbr>", "")
    assert "1,022 more figures are left out." in page


def test_the_history_has_what_changed_most_first(tmp_path, capsys):
    def run(name, error, day):
        figures = {"steady": Figure(1.0), "decode error": Figure(error, "", 1e-5)}
        header = replace(HEADER, started=f"2026-01-0{day}T00:00:00+00:00")
        return write_run(tmp_path / name, replace(PARITY, figures=figures), header=header)

    now, old, older = run("now", 4e-7, 3), run("old", 2e-7, 2), run("older", 1e-7, 1)
    words = ["report", str(now), "--history", str(old), str(older)]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text().split('id="history"')[1]
    first, steady = page.index("decode error: "), page.index("steady: ")
    assert first < steady and "1 of 2 figures changed" in page.replace("<wbr>", "")
    assert ">1e-07</td>" in page[first:steady] and ">4e-07</td>" in page[first:steady]
    heights = [float(y) for y in re.findall(r",([\d.]+)", re.findall(r'points="([^"]*)"', page)[1])]
    assert heights == sorted(heights, reverse=True) and len(heights) == 3
    assert main(words) == 2 and "--history needs -o DIR" in capsys.readouterr().err


def test_a_badge_says_what_failed(run, tmp_path):
    text = ElementTree.fromstring(badge(run)).findtext("{http://www.w3.org/2000/svg}title")
    assert text == "Core ML conformance: 3 of 4 failed"
    passed = read_run(write_run(tmp_path / "passed.jsonl", PARITY))
    assert ">1 passed</text>" in badge(passed)


def test_every_check_and_measurement_has_a_meaning():
    found = (artifact_checks(), value_checks(), core_ml_checks())
    named = [*(name for checks in found for name in checks), *(one.name for one in MEASUREMENTS)]
    shown = [ShownCase(replace(PARITY, check=name), "a", HEADER) for name in named]
    assert [one.check for one in shown if not one.meaning.endswith(".")] == []


def test_a_matrix_of_many_subjects_that_join_late_is_made_in_time():
    """Each subject has a check of its own; then one check joins them all."""
    places = [(f"s{n}", ("-", f"c{n}")) for n in range(20_000)]
    places += [(f"s{n}", ("-", "all")) for n in range(20_000)]
    start = time.process_time()
    parts = _connected(places)
    assert time.process_time() - start < 5
    assert [len(part) for part in parts] == [40_000]
