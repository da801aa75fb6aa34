"""What the page draws of programs and of logits: numbers, the first divergence, hostile values."""

import math
import re
from dataclasses import replace

import pytest
import torch

from harness.checks.findings import explained
from harness.checks.parity import error_histogram
from harness.report.commands import bisect_command, repeat_command
from harness.report.run_page import html_page
from harness.results import Histogram, OperationError, Profile, RecordedFinding, read_run
from tests.results.runs import HEADER, PARITY, write_run

GRAPH = replace(PARITY, suite="bisect", check="graph", runtime="mil:double", figures={})
DOT = r'<circle cx="([\d.]+)%" cy="([\d.]+)" r="2.5" class="(\w+)"><title>(.*?)</title>'


def drawn(tmp_path, case, section):
    """Return a section of the page of a case, and the page."""
    page = (
        html_page(read_run(write_run(tmp_path / "run.jsonl", case)))
        .replace("<wbr>", "")
        .replace("<wbr />", "")
    )
    page.encode()
    return page.partition(f'id="{section}"')[2].partition("</section>")[0], page


def profile(*errors, layer="layer {}", place="method 'a', delegate 0, function 'm'"):
    return Profile(
        "the distance",
        tuple(
            OperationError(place, "mul", f"x{n}", layer.format(n // 2), error, total=error)
            for n, error in enumerate(errors)
        ),
    )


def test_a_dot_is_an_operation_and_the_first_beyond_its_bound_is_named(tmp_path):
    """From 1e-4 at the lower end to 1e2 at the upper one, the bound at a third of the height."""
    found = profile(1e-4, 1e-2, 10.0, 100.0)
    text, page = drawn(
        tmp_path, replace(GRAPH, outcome="fail", reason="r", profile=found), "operations"
    )
    dots = re.findall(DOT, text)[:4]
    assert [float(x) for x, *_ in dots] == pytest.approx(
        [11, 11 + 88 / 3, 11 + 176 / 3, 99], abs=0.1
    )
    top, height = 20, 130
    places = [top + height * (2 - power) / 6 for power in (-4, -2, 1, 2)]
    assert [float(y) for _, y, *_ in dots] == pytest.approx(places, abs=0.1)
    assert [kind for *_, kind, _ in dots] == ["s0", "s0", "over", "over"]
    assert text.count('r="8"') == 1, "one mark, though two operations are beyond their bounds"
    assert re.search(r'class="bad">first: layer 1, mul \'x2\'</text>', text)
    assert "the first beyond its bound is layer 1, mul 'x2': 10 times what is allowed" in text
    named = page.split("Diverges first")[1].split("</a>")[0]
    assert "layer 1, mul &#39;x2&#39;, method &#39;a&#39;" in named
    assert "The error so far" in text and "The error is the distance:" in text
    assert "have no dot" not in text


def test_operations_that_the_stream_left_out_are_counted(tmp_path):
    found = replace(profile(0.5, 0.25), left_out=3)
    text, _ = drawn(tmp_path, replace(GRAPH, profile=found), "operations")
    assert "3 operations of the smallest errors have no dot." in text


def test_a_sound_program_has_no_mark_and_names_its_largest_error(tmp_path):
    text, page = drawn(tmp_path, replace(GRAPH, profile=profile(0.0, 0.125, None)), "operations")
    assert 'class="ring"' not in text and "Diverges first" not in page
    assert "none is beyond its bound; layer 0, mul 'x1' is nearest, with 12.5 % of it" in text


@pytest.mark.parametrize("error", [math.nan, math.inf, 1e300])
def test_an_error_that_no_axis_holds_is_at_its_end(tmp_path, error):
    case = replace(GRAPH, outcome="fail", reason="r", profile=profile(0.5, error))
    text, _ = drawn(tmp_path, case, "operations")
    (x, y, kind, _), *_ = re.findall(DOT, text)[1:]
    assert (float(x), float(y), kind) == (99.0, 20.0, "over") and 'class="ring"' in text


@pytest.mark.parametrize(
    "found",
    [
        Profile("m", ()),
        profile(None, None),
        profile(0.0),
        profile(5e-324, layer=""),
        profile(0.5, layer="\ud800]]><script>", place="\0, delegate "),
    ],
)
def test_a_profile_without_much_is_drawn(tmp_path, found):
    _, page = drawn(tmp_path, replace(GRAPH, profile=found), "operations")
    assert "Passed</strong>" in page and page.count("<script") == 1


def test_thousands_of_operations_keep_the_first_and_the_worst(tmp_path):
    errors = [0.1] * 9000
    errors[4711], errors[4712], errors[8000] = 1.5, 90.0, 2.0
    case = replace(GRAPH, outcome="fail", reason="r", profile=profile(*errors, layer="l"))
    text, page = drawn(tmp_path, case, "operations")
    titles = [title for *_, title in re.findall(DOT, text)]
    assert "l, mul 'x4711': 150 %" in titles and "l, mul 'x8000': 200 %" in titles
    assert len(titles) <= 2 * 160 and len(page) < 200_000
    assert "first: l, mul 'x4711'" in text


@pytest.mark.parametrize(
    ("code", "compared", "advised"),
    [
        ("N20", ["golden"], False),
        ("N20", ["reference"], True),
        ("N20", ["checkpoint", "golden"], True),
        ("N07", ["checkpoint"], False),  # what stopped the check would stop the bisection
        ("N01", "its own weights", True),
    ],
)
def test_a_bisection_is_advised_where_it_can_find_something(code, compared, advised):
    finding = explained(RecordedFinding(code, "", "e"))
    case = replace(PARITY, suite="check", outcome="fail", reason="r", findings=(finding,))
    header = replace(HEADER, options={"compared with": compared}, typed=("m.pte",))
    assert bool(bisect_command(case, header)) == advised


def test_a_bisections_results_go_below_those_of_the_run():
    finding = explained(RecordedFinding("N01", "", "e"))
    case = replace(PARITY, suite="check", outcome="fail", reason="r", findings=(finding,))
    typed = ("m.pte", "--checkpoint", "c", "--results", "my results")
    header = replace(HEADER, options={"compared with": ["checkpoint"]}, typed=typed)
    wanted = "harness bisect m.pte --checkpoint c --results 'my results/bisect'"
    assert bisect_command(case, header) == wanted
    assert repeat_command(case, header).startswith("harness check m.pte --checkpoint c --runtime")


def test_a_command_for_the_operation_at_fault_is_on_the_page_of_wrong_numbers(tmp_path):
    from harness.checks.findings import explained
    from harness.results import RecordedFinding

    finding = explained(RecordedFinding("N10", "decode", "it is off"))
    wrong = replace(PARITY, suite="check", outcome="fail", reason="r", findings=(finding,))
    _, page = drawn(tmp_path, wrong, "failures")
    assert page.count("<pre>harness bisect tiny --results results/bisect</pre>") == 1
    other = replace(wrong, findings=(explained(RecordedFinding("M02", "a", "b")),))
    assert "harness bisect" not in drawn(tmp_path, other, "failures")[1]


BARS = re.compile(r'<path d="([^"]*)" class="(\w+)"')


def test_a_histogram_counts_errors_by_powers_of_two():
    wanted = torch.zeros(8)
    given = torch.tensor([0.0, 0.25, 0.375, 0.5, -1.0, 2.0, math.nan, -math.inf])
    assert error_histogram(given, wanted, 1.0) == Histogram(-2, (2, 1, 1, 1), exact=1, lost=2)
    assert error_histogram(wanted, wanted, 1.0) == Histogram(0, (), exact=8)
    tiny = error_histogram(torch.tensor([1e-300, 1e300], dtype=torch.float64), torch.zeros(2), 1.0)
    assert (tiny.first, tiny.total, len(tiny.counts)) == (-40, 2, 61)


def test_the_errors_of_logits_are_bars_and_those_beyond_the_bound_are_red(tmp_path):
    sizes = {"decode logits": Histogram(-2, (6, 3, 1, 1), exact=1)}
    case = replace(PARITY, outcome="fail", reason="r", figures={}, histograms=sizes)
    text, _ = drawn(tmp_path, case, "logits")
    assert BARS.findall(text) == [
        ("M0 1V0.000h1V1zM1 1V0.500h1V1z", "s0"),
        ("M2 1V0.833h1V1zM3 1V0.833h1V1z", "over"),
    ]
    assert "decode, tiny single: half &lt; 50 %, all &lt; 400 %" in text
    assert "12 logits, 1 without an error; 6 from 25 %" in text


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Histogram(0, (), lost=3), "3 are not finite"),
        (Histogram(0, (), exact=3), "x, tiny single: all exact"),
        (Histogram(-40, (1,) * 61), "all &lt; 2,100,000 times"),
        (Histogram(-2, (1,), exact=3), "half exact, all &lt; 50 %"),
    ],
)
def test_odd_histograms_are_drawn(tmp_path, one, said):
    case = replace(PARITY, outcome="fail", reason="r", figures={}, histograms={"x": one})
    assert said in drawn(tmp_path, case, "logits")[0]


def test_an_empty_histogram_is_left_out(tmp_path):
    case = replace(PARITY, histograms={"x": Histogram(0, ())})
    assert 'id="logits"' not in drawn(tmp_path, case, "logits")[1]


def test_an_area_of_weights_has_as_many_lines_as_fit(tmp_path):
    facts = {
        "package 0 forward, prefill weight bytes": 900,
        "package 0 forward weight bytes": 90,
        "package 0 prefill weight bytes": 10,
    }
    text, _ = drawn(tmp_path, replace(PARITY, check="copies", facts=facts), "weights")
    names = re.findall(r'class="names">(.*?)</foreignObject>', text)
    assert names == ["<p>900 bytes</p><p>shared by forward, prefill</p><p>package 0</p>"]
    facts["package 0 forward weight bytes"] = 400
    text, _ = drawn(tmp_path, replace(PARITY, check="copies", facts=facts), "weights")
    assert "<p>400 bytes</p><p>only forward</p></foreignObject>" in text
