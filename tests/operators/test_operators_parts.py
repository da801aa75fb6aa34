"""The parts of the operators' suite that work without Core ML: lists, counts, comparisons."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from harness.suites.impossible import Impossible, Target, judge_listed, read_impossible, unused
from harness.suites.operators.plugin import IMPOSSIBLE, OperatorsRecorder
from harness.suites.operators.selection import sample
from harness.suites.operators.tally import Result, case_of, opset_table, rows_of
from harness.suites.operators.watch import HALF_BOUND, within_half
from tests.results.runs import HEADER

FILE = "iOS15/test_x.py"


def target(parameters="", opset="iOS15", function="test_x"):
    return Target(FILE, function, parameters, opset)


def test_fp16_resolution_is_relative_to_the_largest_value():
    wanted = np.array([1000.0, 0.001, 0])
    assert within_half(wanted + 1000 * HALF_BOUND, wanted)
    assert not within_half(wanted + 1001 * HALF_BOUND, wanted)
    assert not within_half([1e-9], [0.0])
    assert not within_half(wanted[:2], wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_the_same(bad):
    assert within_half([1, bad], [1, bad])
    assert not within_half([1, bad], [1, 2])
    assert not within_half([1, 2], [1, bad])


def test_the_list_is_short_and_each_entry_has_its_reason():
    entries = read_impossible(IMPOSSIBLE)
    assert 0 < len({entry.test for entry in entries}) < 60
    assert all(len(entry.reason) > 30 for entry in entries)


@pytest.mark.parametrize(
    "row", ['test = "a"', 'reason = "b"', 'test = "a"\nreason = "b"\nwhy = "c"']
)
def test_an_entry_that_is_not_whole_is_refused(tmp_path, row):
    path = tmp_path / "list.toml"
    path.write_text(f"[[impossible]]\n{row}\n")
    with pytest.raises(ValueError, match=r"list\.toml: an entry needs 'test' and 'reason'"):
        read_impossible(path)


def test_an_entry_covers_what_its_patterns_and_opsets_say():
    entry = Impossible(f"{FILE}::test_x", "a reason", ("*N=3*",), ("iOS17",))
    assert entry.covers(target("a-N=3-b", "iOS17"))
    assert not entry.covers(target("a-N=2-b", "iOS17"))
    assert not entry.covers(target("a-N=3-b", "iOS18"))
    assert not entry.covers(target("a-N=3-b", "iOS17", function="test_y"))
    assert unused([entry], [target("N=3", "iOS17")]) == []
    assert unused([entry], [target("N=2", "iOS17")]) == [entry]


@pytest.mark.parametrize(
    ("outcome", "unsteady", "judged"),
    [
        ("failed", False, "skipped"),
        ("failed", True, "skipped"),
        ("passed", False, "failed"),
        ("passed", True, "passed"),
        ("skipped", False, "skipped"),
    ],
)
def test_a_listed_test_may_pass_only_when_it_is_unsteady(outcome, unsteady, judged):
    report = SimpleNamespace(
        outcome=outcome, failed=outcome == "failed", passed=outcome == "passed", longrepr=None
    )
    judge_listed(report, Impossible(f"{FILE}::test_x", "a reason", unsteady=unsteady))
    assert report.outcome == judged


def item(function, parameters, opset):
    backend = SimpleNamespace(opset_version=SimpleNamespace(name=opset), precision="fp32")
    return SimpleNamespace(
        path=f"/x/{FILE}",
        nodeid=f"{FILE}::{function}[{parameters}]",
        callspec=SimpleNamespace(params={"backend": backend}, id=parameters),
    )


class Item(SimpleNamespace):
    __hash__ = object.__hash__


def test_a_sample_has_some_of_each_test_and_opset_and_always_the_same():
    items = [
        Item(**vars(item(function, str(number), opset)))
        for function in ("test_a", "test_b")
        for opset in ("iOS15", "iOS18")
        for number in range(10)
    ]
    chosen = sample(items, 2)
    assert len(chosen) == 2 * 2 * 2
    assert sample(list(reversed(items)), 2) == chosen
    assert sample(items, 99) == set(items)


def result(end, values=1, **options):
    return Result(target(), end, values, **options)


def test_a_file_in_which_something_fails_fails():
    ends = [result("passed", 5), result("failed", problem="3 is not 4"), result("listed")]
    ((key, row),) = rows_of(ends).items()
    case = case_of(*key, row, "mil:widen")
    assert case.outcome == "fail" and case.comparisons == 5
    assert case.reason == "1 of 3 tests fail: test_x: 3 is not 4"


@pytest.mark.parametrize("end", ["no prediction", "skipped", "listed", "upstream"])
def test_a_file_in_which_nothing_predicts_does_not_pass(end):
    ((key, row),) = rows_of([result(end)]).items()
    assert case_of(*key, row, "mil:widen").outcome == "skip"


def test_the_share_is_of_those_that_predicted():
    ends = ["passed"] * 3 + ["failed", "listed", "no prediction", "skipped", "broken"]
    table = opset_table(rows_of(map(result, ends)))
    assert "75.00%" in table.splitlines()[2]


@pytest.fixture
def results(tmp_path):
    header = replace(HEADER, options={"everything": False, "sample": 1, "native": False})
    return OperatorsRecorder("operators", tmp_path / "operators", header)


def test_a_test_that_ends_its_process_fails(results, tmp_path):
    nodeid = f"x/{FILE}::TestX::test_x[a-b]"
    results.pytest_runtest_logreport(
        SimpleNamespace(user_properties=[], failed=True, nodeid=nodeid)
    )
    results.pytest_sessionfinish(SimpleNamespace(exitstatus=1), 1)
    failures = (tmp_path / "operators/failures.txt").read_text()
    assert failures.split() == [f"{FILE}::TestX::test_x[a-b]", "the", "process", "ended"]


def reported(end):
    carried = [("operators", result(end).to_json())]
    return SimpleNamespace(user_properties=carried, failed=False, nodeid="")


@pytest.mark.parametrize(("end", "status"), [("passed", 0), ("no prediction", 1), ("listed", 1)])
def test_a_run_in_which_nothing_predicts_fails(results, end, status):
    session = SimpleNamespace(exitstatus=0)
    results.pytest_runtest_logreport(reported(end))
    results.pytest_sessionfinish(session, 0)
    assert session.exitstatus == status


def test_an_interrupted_run_leaves_no_results(results, tmp_path):
    results.pytest_runtest_logreport(reported("passed"))
    results.pytest_sessionfinish(SimpleNamespace(exitstatus=2), pytest.ExitCode.INTERRUPTED)
    assert [path.suffix for path in (tmp_path / "operators").iterdir()] == [".partial"]


def test_an_interrupt_is_reported_without_its_place_in_the_code(results):
    loop = results.pytest_runtestloop()
    next(loop)
    with pytest.raises(pytest.exit.Exception, match="^interrupted$"):
        loop.throw(KeyboardInterrupt)
    results.pytest_sessionfinish(SimpleNamespace(exitstatus=2), pytest.ExitCode.INTERRUPTED)
