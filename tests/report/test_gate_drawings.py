"""The drawings of a comparison of BASE and HEAD: for a pull request, a program and a browser."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import harness.report
from harness.measure import GateResult, Metric
from harness.measure.verdicts import VERDICTS
from harness.report.gate import Comparison, html_page, list_metrics, markdown, prose, write_gate
from tests.results.runs import HEADER

SCHEMA = Path(harness.report.__file__).with_name("gate.schema.json")
HOSTILE = "@user #12 http://x.y <img src=x> `a`|b| *c* ![d](e)\n# f"
NUMBERS = {"ratio": 1.05, "samples": [1.0, 2.0]}
SLOWER = Metric("tiny/single", "decode", "figure", "4 ms", "5 ms", "regression", "slower")
SLOWER = replace(SLOWER, numbers=NUMBERS)
CHANGED = replace(SLOWER, name="program", verdict="changed", accept="program", numbers={})
OPEN = replace(SLOWER, name="load", verdict="inconclusive", numbers={})
SAME = replace(SLOWER, name="equal", verdict="same", reason="", numbers={})
BETTER = replace(SAME, name="size", verdict="better")


def comparison(*metrics, notes=(), name="executorch@../my branch"):
    side = {"name": "executorch@1.4.1", "kind": "exporter", "versions": {"torch": "2.13.0"}}
    return Comparison(
        side,
        {**side, "name": name},
        HEADER,
        12.5,
        GateResult(metrics, notes),
        lambda metric: f"harness gate A B --fixture {metric.case}",
    )


def test_a_comment_has_the_verdict_first_then_what_fails_then_the_rest_folded():
    text = markdown(comparison(SAME, BETTER, OPEN, CHANGED, SLOWER))
    assert text.startswith("### FAILED: `executorch@../my branch` against `executorch@1.4.1`\n")
    shown = [text.index(f"`{name}`") for name in ("decode", "program", "load")]
    folded = text.index("<details><summary>Better (1)</summary>")
    assert shown == sorted(shown) and max(shown) < folded < text.index("`size`")
    assert "`--accept program`" in text and "`equal`" not in text and "1 same" in text
    assert text.count("harness gate A B --fixture tiny/single") == 1


def test_a_change_in_several_places_is_one_row_and_the_json_has_them_all():
    """Without sharing, each delegate of tiny has the same eleven changes."""
    places = [replace(CHANGED, case=f"delegate {n}") for n in range(6)]
    other = replace(CHANGED, case="delegate 6", head="6 ms")
    slow = [replace(SLOWER, case=f"delegate {n}") for n in range(2)]
    compared = replace(comparison(*places, other, *slow), repeat=lambda metric: "")
    for text in (
        markdown(compared),
        html_page(compared),
        list_metrics(compared.result.metrics, False),
    ):
        assert text.count("delegate 0, and in 5 more places") == 1
        assert "delegate 5" not in text and "delegate 6" in text
    assert markdown(compared).count("**regression**") == 2
    assert len(compared.to_json()["metrics"]) == 9
    assert "delegate 5" in list_metrics(compared.result.metrics, everything=True)


def test_a_comment_keeps_numbers_and_marks_no_list():
    assert prose("off by 1.5e-05, www.x.y") == "off by 1.5e-05, www<wbr>.x.y"
    assert prose("- a") == "\\- a" and prose("a@b.c") == "a@<wbr>b.c"


@pytest.mark.parametrize("place", ["case", "name", "base", "head", "reason"])
def test_a_comment_shows_the_texts_of_others_as_text(place):
    text = markdown(comparison(replace(SLOWER, **{place: HOSTILE}), notes=(HOSTILE,), name=HOSTILE))
    row = next(line for line in text.splitlines() if "tiny" in line or "4 ms" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6, "a row keeps its five cells"
    outside = re.sub(r"`[^`]*`", "", text)  # in code, nothing has a meaning
    for meaning in ("@user", "#12", "http://", "<img", "*c*", "![d]", "\n# f"):
        assert meaning not in outside


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_page_shows_each_verdict(verdict):
    assert f">{verdict}</span>" in html_page(comparison(replace(SAME, verdict=verdict)))


def test_a_comment_names_the_versions_that_differ():
    both = comparison(SAME)
    assert "Versions" not in markdown(both)
    head = {**both.head, "versions": {"torch": "2.14.0"}}
    assert "\nVersions: torch 2.13.0 to 2.14.0\n" in markdown(replace(both, head=head))


def test_a_comment_fits_github():
    metrics = [replace(SLOWER, name=f"name {n}" * 40, reason="long " * 400) for n in range(400)]
    text = markdown(comparison(*metrics, *(replace(m, verdict="better") for m in metrics)))
    assert len(text) < 65_536 and text.count(" more are in gate.json") == 2


def test_the_json_has_all_numbers_and_the_form_of_its_schema(tmp_path):
    write_gate(comparison(SLOWER, SAME), tmp_path)
    written = json.loads((tmp_path / "gate.json").read_text())
    assert written["metrics"][0]["numbers"] == NUMBERS and written["status"] == 1
    assert written["base"]["name"] == "executorch@1.4.1"
    schema = json.loads(SCHEMA.read_text())
    assert list(Draft202012Validator(schema).iter_errors(written)) == []
    assert schema["$defs"]["verdict"]["enum"] == list(VERDICTS)


def test_the_page_shows_what_fails_and_what_is_open_first(tmp_path):
    metrics = (SAME, BETTER, OPEN, replace(SLOWER, reason=HOSTILE))
    write_gate(comparison(*metrics, notes=(HOSTILE,)), tmp_path)
    page = (tmp_path / "index.html").read_text()
    titles = re.findall(r"<details( open)?><summary>([^<]*?) \(\d+\)</summary>", page)
    assert titles == [
        (" open", "Regressions"),
        (" open", "Undecided"),
        ("", "Better"),
        ("", "The same"),
        (" open", "Notes"),
    ]
    assert "<img" not in page and "<pre>harness gate A B --fixture tiny/single</pre>" in page
    assert page.index("Undecided") < page.index("Notes (1)") < page.index("Circumstances")
    assert "UNDECIDED" not in page and ">FAILED: " in page
    assert "ratio" in page and "1.05" in page
