"""Valid results with values that nobody expects still become a page."""

import math
import re
from dataclasses import replace

import pytest

from harness.report import run_page
from harness.report.commands import repeat_command
from harness.report.run_page import html_page
from harness.results import Figure, read_run
from tests.results.runs import HEADER, PARITY, SKIPPED, write_run

CHECK = replace(PARITY, suite="check", runtime="-", mode="-")
FAILED = replace(PARITY, outcome="fail", reason="it is wrong", figures={})
TIME = Figure(2.0, "ms/token", spread=1.0)
MANY_DIGITS = "9" * 4400


def page(tmp_path, *cases, earlier=(), header=HEADER):
    runs = []
    for number, found in enumerate([cases, *earlier]):
        path = write_run(tmp_path / f"{number}.jsonl", *found, header=header)
        runs.append(read_run(path))
    text = html_page(runs[0], runs[1:])
    text.encode()
    return text.replace("<wbr>", "")


@pytest.mark.parametrize(("value", "x"), [(math.nan, 99.0), (20.0, 1 + 98 * math.log10(20) / 2)])
def test_figures_that_all_miss_their_bounds_are_right_of_it(tmp_path, value, x):
    """The axis is from the bound, at 1 %, to the next power of ten, at 99 %."""
    text = page(tmp_path, replace(FAILED, figures={"a": Figure(value, bound=1.0)}))
    assert re.search(r'x1="1.0%" x2="1.0%"[^>]*class="bound"', text)
    assert [float(at) for at in re.findall(r'<circle cx="([\d.]+)%"', text)] == [
        pytest.approx(x, abs=0.06)
    ]


def test_times_by_depth_alone_are_drawn(tmp_path):
    text = page(tmp_path, replace(PARITY, figures={"decode at 40 tokens": TIME}))
    assert "40 tokens: 2 to 3 ms/token" in text


def test_a_runtime_with_times_by_depth_alone_is_drawn_beside_others(tmp_path):
    deep = replace(PARITY, runtime="executorch", figures={"decode at 40 tokens": TIME})
    text = page(tmp_path, replace(PARITY, figures={"load": TIME}), deep)
    assert "executorch, 40 tokens: 2 to 3 ms/token" in text
    assert re.findall(r'class="key s\d">\S (\S+)</span>', text.split('id="times"')[1]) == [
        "executorch",
        "mil:widen",
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"figures": {f"decode at {MANY_DIGITS} tokens": TIME, "load": TIME}},
        {"check": "copies", "facts": {f"package {MANY_DIGITS} forward weight bytes": 3}},
        {"fixture": "\ud800", "figures": {"error": Figure(0.5, bound=1.0)}},
        {"fixture": "\ud800", "check": "copies", "facts": {"package 0 \0 weight bytes": 3}},
    ],
)
def test_a_name_or_a_number_that_nobody_writes_is_no_obstacle(tmp_path, given):
    assert "Passed</strong>" in page(tmp_path, replace(PARITY, **given))


@pytest.mark.parametrize(("first", "last"), [(1e300, 5e-324), (5e-324, 1e300), (0.0, 1.0)])
def test_the_history_has_figures_that_no_ratio_holds(tmp_path, first, last):
    then, now = (
        (replace(PARITY, figures={"steady": Figure(1.0), "error": Figure(value)}),)
        for value in (first, last)
    )
    history = page(tmp_path, *now, earlier=[then]).split('id="history"')[1]
    assert "1 of 2 figures changed" in history
    assert history.index("error: ") < history.index("steady: ")


@pytest.mark.parametrize(("last", "cell"), [(math.nan, "nan"), (3e-15, "3e-15")])
def test_the_history_ends_with_the_figure_of_the_run(tmp_path, last, cell):
    then, now = (replace(FAILED, figures={"error": Figure(value)}) for value in (4e-15, last))
    history = page(tmp_path, now, earlier=[(then,)]).split('id="history"')[1]
    assert 'data-name="first">4e-15<' in history and f'data-name="last">{cell}<' in history


@pytest.mark.parametrize("sources", [5, None, {"checkpoint": 1}, "checkpoint"])
def test_a_command_leaves_out_sources_that_are_no_list(sources):
    header = replace(HEADER, options={"compared with": sources})
    assert repeat_command(CHECK, header) == "harness check tiny --check parity"


@pytest.mark.parametrize(
    ("fixture", "named"),
    [("coreml:tiny", "coreml:tiny"), ("tiny", "executorch@1.5.1:tiny")],
)
def test_a_command_names_the_exporter_of_its_case_among_several(fixture, named):
    versions = {"executorch": {"executorch": "1.5.1"}, "coreml": {"coremltools": "9.0"}}
    command = repeat_command(replace(CHECK, fixture=fixture), replace(HEADER, exporters=versions))
    assert command == f"harness check {named} --check parity"


def test_a_table_that_is_too_large_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(run_page, "_MAX_CELLS", 12)
    cases = [
        replace(PARITY, fixture=f"f{n // 4}", check=f"c{n % 4}", figures={}) for n in range(16)
    ]
    small, large = page(tmp_path, *cases[:3], SKIPPED), page(tmp_path, *cases)
    said = "too many subjects and checks for a table"
    assert 'id="matrix"' in small and said not in small
    assert 'id="matrix"' not in large and "#matrix" not in large and said in large
