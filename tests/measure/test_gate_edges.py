"""The gate on two runs that do not match: missing and new cases, odd values, skips."""

import itertools
import json
from dataclasses import replace

import pytest

from harness.cli import main
from harness.measure import compare_runs
from harness.results import Figure, read_run
from tests.results.runs import HEADER, PARITY, SKIPPED, write_run

GREEDY = replace(PARITY, check="greedy", figures={}, facts={})
FAILED = replace(PARITY, outcome="fail", reason="off")


@pytest.fixture
def gate(tmp_path):
    """Compare two lists of cases, the second under a header of its own."""

    def compare(base, head, header=HEADER, margins=None):
        base_path = write_run(tmp_path / "base.jsonl", *base)
        head_path = write_run(tmp_path / "head.jsonl", *head, header=header)
        return compare_runs(read_run(base_path), read_run(head_path), margins)

    return compare


def verdict(result, case, name):
    (found,) = [m.verdict for m in result.metrics if (m.case, m.name) == (case.id, name)]
    return found


# From best to worst; the last four are equally bad.
LADDER = [
    replace(PARITY, figures={}, facts={}),
    replace(FAILED, outcome="known", issue="issue 1", figures={}, facts={}),
    replace(SKIPPED, runtime=PARITY.runtime, facts={}),
    replace(FAILED, figures={}, facts={}),
]
EQUALLY_BAD = [
    LADDER[-1],
    replace(LADDER[-1], outcome="timeout"),
    replace(LADDER[-1], outcome="error", stage="load"),
    replace(LADDER[-1], outcome="crash", signal="SIGSEGV"),
]


def with_figure(value, unit="", better="lower"):
    return replace(PARITY, figures={"x": Figure(value, unit, None, better)})


@pytest.mark.parametrize(
    ("spreads", "wanted"),
    [
        ((0.4, None), "inconclusive"),
        ((0.2, 0.2), "inconclusive"),
        ((0.1, 0.1), "regression"),
        ((None, None), "regression"),
    ],
)
def test_a_change_within_the_spread_of_the_samples_is_inconclusive(gate, spreads, wanted):
    base, head = (
        replace(PARITY, figures={"load": Figure(value, "ms", spread=spread)})
        for value, spread in zip((2.0, 2.3), spreads, strict=True)
    )
    assert verdict(gate([base], [head], margins={"load": 10}), PARITY, "load") == wanted
    assert verdict(gate([base], [head]), PARITY, "load") == "unjudged"


@pytest.mark.parametrize(("better", "worse"), [*itertools.pairwise(range(len(LADDER)))])
def test_each_step_down_the_ladder_of_outcomes_is_a_regression(gate, better, worse):
    down, up = (gate([LADDER[a]], [LADDER[b]]) for a, b in ((better, worse), (worse, better)))
    assert verdict(down, PARITY, "outcome") == "regression"
    assert verdict(up, PARITY, "outcome") == "better"


@pytest.mark.parametrize("head", EQUALLY_BAD, ids=lambda case: case.outcome)
def test_bad_outcomes_are_equally_bad(gate, head):
    assert verdict(gate([EQUALLY_BAD[0]], [head]), PARITY, "outcome") == "failing"


def test_what_a_crash_could_not_measure_is_no_regression_of_its_own(gate):
    result = gate([FAILED], [EQUALLY_BAD[-1]])
    assert [(m.name, m.verdict) for m in result.metrics] == [("outcome", "failing")]


def test_a_few_comparisons_may_go_and_more_may_not(gate):
    few, many = (gate([PARITY], [replace(PARITY, comparisons=n)]) for n in (951, 949))
    assert verdict(few, PARITY, "comparisons") == "same"
    assert verdict(many, PARITY, "comparisons") == "regression"


def test_other_versions_are_noted_and_compared_all_the_same(gate):
    header = replace(HEADER, versions={"torch": "2.14.0"})
    result = gate([PARITY], [replace(PARITY, facts={"opset": "CoreML7"})], header=header)
    (note,) = result.notes
    assert "torch 2.13.0 -> 2.14.0" in note and "compared all the same" in note
    assert verdict(result, PARITY, "opset") == "changed"


def test_other_exporters_are_noted_and_compared_all_the_same(gate):
    header = replace(HEADER, exporters={"executorch": {"executorch": "1.5.1", "torch": "2.13.0"}})
    result = gate([PARITY], [PARITY], header=header)
    (note,) = result.notes
    assert note.startswith(
        "The exporter packages of the runs differ (executorch/executorch None ->"
    )
    assert result.status == 0


def test_a_missing_case_is_a_regression_when_others_are_there(gate):
    result = gate([PARITY, GREEDY], [PARITY])
    assert verdict(result, GREEDY, "outcome") == "regression" and result.status == 1


def test_a_new_case_is_listed_and_no_regression(gate):
    result = gate([PARITY], [PARITY, GREEDY])
    assert verdict(result, GREEDY, "outcome") == "new" and result.status == 0


def test_a_missing_fact_is_a_regression_and_a_new_one_is_not(gate):
    without = replace(PARITY, facts={})
    assert verdict(gate([PARITY], [without]), PARITY, "opset") == "regression"
    result = gate([without], [PARITY])
    assert verdict(result, PARITY, "opset") == "new" and result.status == 0


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        (0.0, 1e-9, "regression"),
        (0.0, 0.0, "same"),
        (1.0, float("nan"), "regression"),
        (1.0, float("inf"), "regression"),
        (float("nan"), 1.0, "inconclusive"),
        (-10.0, -8.0, "regression"),
    ],
)
def test_values_that_have_no_plain_percentage(gate, base, head, expected):
    result = gate([with_figure(base)], [with_figure(head)])
    assert verdict(result, PARITY, "x") == expected


def test_higher_is_better_turns_the_direction_round(gate):
    base, more, less = (with_figure(v, "dB", "higher") for v in (60.0, 70.0, 55.0))
    assert verdict(gate([base], [more]), PARITY, "x") == "better"
    assert verdict(gate([base], [less]), PARITY, "x") == "regression"


def test_an_exact_figure_has_no_margin(gate):
    base, other = (with_figure(v, "", "exact") for v in (1000, 1001))
    assert verdict(gate([base], [other]), PARITY, "x") == "regression"


def test_a_figure_with_another_unit_is_another_figure(gate):
    result = gate([with_figure(3.0, "ms")], [with_figure(0.003, "s")])
    assert verdict(result, PARITY, "x") == "regression"


def test_true_and_one_are_two_facts(gate):
    base, head = (replace(PARITY, facts={"shared": v}) for v in (True, 1))
    assert verdict(gate([base], [head]), PARITY, "shared") == "changed"


def test_a_case_that_fails_in_both_is_named(gate):
    result = gate([FAILED], [FAILED])
    assert verdict(result, PARITY, "outcome") == "failing" and result.status == 0


def test_what_failed_before_is_not_held_against_what_passes_now(gate):
    result = gate([replace(FAILED, facts={"operations": 1})], [PARITY])
    assert [m.verdict for m in result.metrics] == ["better"]


def test_two_skips_alone_are_nothing_to_compare(tmp_path, capsys):
    path = str(write_run(tmp_path / "run.jsonl", SKIPPED))
    assert main(["gate", path, path]) == 2
    assert "Nothing could be compared" in capsys.readouterr().err


def test_every_verdict_of_a_regression_is_printed_within_the_width(tmp_path, capsys):
    base = write_run(tmp_path / "base.jsonl", PARITY, GREEDY)
    head = write_run(tmp_path / "head.jsonl", replace(PARITY, facts={"opset": "C" * 300}))
    assert main(["gate", str(base), str(head)]) == 1
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert "FAILED" in printed and GREEDY.id in printed and "same" in printed
    assert main(["gate", str(base), str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["regression"] == 0
