"""The judge of the second opinion: what differs, what is recorded, and a run that met nobody."""

import importlib.util
import platform

import pytest
import torch

from harness.errors import HarnessError
from harness.results import Case, Footer, Header, Run
from harness.suites.second_opinion import child, conftest
from harness.suites.second_opinion.compare import measured
from harness.suites.second_opinion.executors import eager
from harness.suites.second_opinion.judge import (
    EXECUTORS,
    Difference,
    Judge,
    case_of,
    read_differences,
)

SOUND = {"errors": {"ordinary": 0.4}, "problems": {}, "compared": 64}
WRONG = {"errors": {"ties": 9.0}, "problems": {"ties": "3, not 2, at element 4"}, "compared": 64}
REFUSED = {"refused": "ValueError: no such operation"}
TIES = Difference("mil", ("round",), ("fp32",), "a reason", frozenset({"ties"}))
REFUSAL = Difference("mil", ("round",), ("fp32",), "a reason", refused="no such")


def judged(found, *rows):
    return case_of("round", "fp32", "mil", found, rows)


@pytest.mark.parametrize(
    ("found", "rows", "outcome", "told"),
    [
        (SOUND, [], "pass", ""),
        (WRONG, [], "fail", "ties: 3, not 2"),
        (WRONG, [TIES], "known", "a reason"),
        (SOUND, [TIES], "fail", "ties no longer differ"),
        (REFUSED, [], "fail", "its converter refuses"),
        (REFUSED, [REFUSAL], "skip", "no such operation"),
        (REFUSED, [TIES], "fail", "its converter refuses"),
        (SOUND, [REFUSAL], "fail", "records a refusal"),
        ({"errors": {}, "problems": {}, "compared": 0}, [], "fail", "nothing was compared"),
    ],
)
def test_what_differs_is_recorded_and_what_is_recorded_differs(found, rows, outcome, told):
    case = judged(found, *rows)
    assert case.outcome == outcome and told in case.summary


def test_a_row_excuses_no_other_kind_executor_or_precision():
    both = {**WRONG, "problems": {**WRONG["problems"], "nan": "0, not nan, at element 0"}}
    assert "nan: 0, not nan" in judged(both, TIES).reason
    assert case_of("round", "fp16", "mil", WRONG, (TIES,)).outcome == "fail"
    assert case_of("round", "fp32", "core-ai", WRONG, (TIES,)).outcome == "fail"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('executor = "ours"\nsubjects = ["round"]\nkinds = ["nan"]\nreason = "x"', "none of"),
        ('executor = "mil"\nsubjects = ["rounds"]\nkinds = ["nan"]\nreason = "x"', "no subject"),
        ('executor = "mil"\nsubjects = ["abs"]\nkinds = ["ties"]\nreason = "x"', "no values"),
        ('executor = "mil"\nsubjects = ["abs"]\nkinds = ["nan"]', "needs"),
        ('executor = "mil"\nsubjects = ["abs"]\nreason = "x"', "needs"),
        ('executor = "mil"\nsubjects = ["abs"]\nkind = ["nan"]\nreason = "x"', "unknown keys"),
    ],
)
def test_a_row_that_can_never_match_is_refused(tmp_path, row, told):
    path = tmp_path / "differences.toml"
    path.write_text(f"[[difference]]\n{row}\n")
    with pytest.raises(HarnessError, match=told):
        read_differences(path)


def test_the_record_of_the_suite_can_be_read():
    assert all(row.reason for row in read_differences())


class Dying:
    """Answers for batches that leave out one subject of one executor, and dies of the others."""

    def ask(self, request, doing, processor_seconds):
        from harness.errors import CrashError

        if "core-ai" in request["executors"] and "exp" in request["subjects"]:
            raise CrashError("it died", "SIGSEGV")
        return {one: dict.fromkeys(request["subjects"], SOUND) for one in request["executors"]}

    def end(self):
        pass


def test_a_crash_is_of_one_subject_and_executor(monkeypatch):
    monkeypatch.setattr("harness.suites.expendable.Child", lambda *_: Dying())
    names = ["abs", "neg", "exp", "log", "sin"]
    judge = Judge((), names)
    found = {(n, e): judge.case(n, "fp32", e).outcome for n in names for e in EXECUTORS}
    assert {key for key, outcome in found.items() if outcome != "pass"} == {("exp", "core-ai")}
    assert found["exp", "core-ai"] == "crash"


def run_of(*cases):
    return Run(Header.here({}), cases, Footer.of(cases, 1.0))


def test_a_run_in_which_three_executors_never_meet_judged_nothing():
    met = [case_of("round", "fp32", one, SOUND, ()) for one in EXECUTORS]
    apart = [case_of("round", "fp32", one, SOUND, ()) for one in EXECUTORS[:2]]
    other = case_of("round", "fp16", EXECUTORS[2], SOUND, ())
    assert not conftest.lonely(run_of(*met))
    assert conftest.lonely(run_of(*apart, other)) and conftest.lonely(run_of())


@pytest.fixture
def table(tmp_path):
    table = conftest.Table("second-opinion", tmp_path, Header.here({}))
    yield table
    table.pytest_sessionfinish(None, pytest.ExitCode.INTERRUPTED)


def test_the_table_has_a_row_for_each_subject(table):
    cases = [case_of("round", "fp32", one, SOUND, ()) for one in EXECUTORS]
    skipped = Case("second-opinion", "fp16", "round", runtime="mil", outcome="skip", reason="x")
    assert table.table(run_of(*cases, skipped))[-1] == (
        "| round | ULP | 0.4 | 0.4 | 0.4 |  | refused |  |"
    )


def test_a_set_up_that_fails_is_told(table):
    reason = "coreai is not installed"
    broken = Case("second-opinion", "setup of x", outcome="error", stage="test", reason=reason)
    assert reason in table.summary(run_of(broken), colours=False)


@pytest.mark.parametrize(
    ("subject", "precision", "error", "bound"),
    [("square", "fp32", 0.5, 0.5), ("abs", "fp16", 0.0, 0.5), ("transpose", "fp32", 0.0, 0.0)],
)
def test_each_error_has_the_bound_that_its_subject_is_judged_by(subject, precision, error, bound):
    found = {"errors": {"ordinary": error}, "problems": {}, "compared": 64}
    figure = case_of(subject, precision, "mil", found, ()).figures["ordinary"]
    assert (figure.value, figure.bound, figure.floor) == (error, bound, bound)


@pytest.mark.parametrize("missing", ["coreai", "coreai_torch"])
def test_the_suite_fails_without_core_ai(monkeypatch, missing):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else 1)
    with pytest.raises(pytest.fail.Exception, match=f"{missing} is not installed"):
        conftest.pytest_runtest_setup()


def test_the_suite_skips_where_our_executor_cannot_predict(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(pytest.skip.Exception, match="which needs Linux"):
        conftest.pytest_runtest_setup()


def of(found, wanted, measure="ulp", bound=0.5, precision="fp32"):
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    exact = torch.tensor(wanted, dtype=torch.float64)
    return measured([torch.tensor(found, dtype=dtype)], [exact], measure, bound, precision)


@pytest.mark.parametrize(
    ("found", "wanted", "options"),
    [
        ([0.0], [-0.0], {}),
        ([0.0], [-0.0], {"measure": "exact"}),
        ([float("inf")], [3e38], {}),
        ([float("inf")], [-float("inf")], {"measure": "relative"}),
        ([float("nan")], [1.0], {"measure": "relative"}),
        ([1.0], [float("nan")], {}),
        ([0.0], [1e-45], {}),  # a denormal flushed to zero
        ([1.0000001192092896], [1.0], {}),  # one unit in the last place
        ([2050.0], [2048.0], {"precision": "fp16"}),
        ([65504.0], [70000.0], {"precision": "fp16"}),
        ([1.0, 100.0], [1.1, 100.0], {"measure": "relative", "bound": 1e-4}),
    ],
)
def test_a_wrong_element_is_beyond_the_bound(found, wanted, options):
    assert of(found, wanted, **options).problem


@pytest.mark.parametrize(
    ("found", "wanted", "options"),
    [
        ([float("nan"), -0.0], [float("nan"), -0.0], {"measure": "exact"}),
        ([float("inf")], [1e39], {}),
        ([0.0], [-0.0], {"measure": "relative"}),
        ([1.0], [1 + 2.0**-25], {}),
        ([1.0], [1 + 2.0**-12], {"precision": "fp16"}),
        ([1.0, 100.0], [1.001, 100.0], {"measure": "relative", "bound": 1e-4}),
    ],
)
def test_a_right_element_is_within_the_bound(found, wanted, options):
    one = of(found, wanted, **options)
    assert not one.problem and one.compared == len(wanted)


def test_a_missing_output_and_a_wrong_shape_are_told():
    x = torch.ones(3)
    assert "1 outputs, not 2" in measured([x], [x, x], "exact", 0.0, "fp32").problem
    assert "shape [3], not [1, 3]" in measured([x], [x[None]], "exact", 0.0, "fp32").problem


def test_the_reference_is_computed_once_for_all_executors(monkeypatch):
    asked = []

    def reference(module, inputs):
        asked.append(module)
        return executed(module, inputs)

    executed = child.reference
    monkeypatch.setattr(child, "reference", reference)
    monkeypatch.setattr(child, "EXECUTORS", dict.fromkeys(EXECUTORS, eager))
    child.prepared.cache_clear()
    found = child.judged({"subjects": ["abs", "reciprocal"], "precision": "fp32"})
    abs_, reciprocal = (len(child.SUBJECTS[name].kinds) for name in ("abs", "reciprocal"))
    assert len(asked) == abs_ + 2 * reciprocal  # MIL documents another function for reciprocal
    assert found["pytorch"]["reciprocal"]["problems"] == {}
    assert "zeros" in found["mil"]["reciprocal"]["problems"]  # 1/0 is 10,000 there
    assert found["core-ai"]["abs"]["compared"] == abs_ * 64
