"""The verdicts that the suite of families keeps, and where it runs."""

import platform

import pytest

from harness.results import Case, Footer, Header, Run
from harness.suites.families import conftest
from harness.suites.families.judge import _CODE, _ROOT, Judge
from harness.suites.families.models import FAMILIES


class Answers:
    """Answers with an outcome, and counts the requests."""

    def __init__(self, outcome):
        self.outcome, self.asked = outcome, 0

    def ask(self, request, doing):
        self.asked += 1
        more = {
            "pass": {"comparisons": 1},
            "crash": {"signal": "SIGSEGV"},
            "error": {"stage": "judging"},
        }
        return {"outcome": self.outcome, "reason": "a reason"} | more.get(self.outcome, {})


@pytest.mark.parametrize(
    ("outcome", "asked"),
    [("pass", 1), ("fail", 1), ("skip", 1), ("error", 2), ("crash", 2), ("timeout", 2)],
)
def test_only_a_verdict_is_kept(tmp_path, outcome, asked):
    answers = Answers(outcome)
    for _ in range(2):
        judge = Judge(tmp_path, again=False)
        judge._child = answers
        assert judge.case("bert", "fixed", "fp32").outcome == outcome
    assert answers.asked == asked


def test_a_verdict_depends_on_code_that_is_there():
    assert all(list((_ROOT / folder).rglob("*.py")) for folder in _CODE)


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_the_suite_skips_where_nothing_can_predict(monkeypatch, system):
    monkeypatch.setattr(platform, "system", lambda: system)
    with pytest.raises(pytest.skip.Exception, match="which needs Linux"):
        conftest.pytest_runtest_setup()


@pytest.mark.linux
def test_the_suite_runs_on_linux():
    conftest.pytest_runtest_setup()


@pytest.fixture
def must_fail(tmp_path):
    """must_fail(outcomes): whether a run of families with these outcomes in fp32 must fail."""
    table = conftest.Table("families", tmp_path, Header.here({}))

    def must_fail(outcomes):
        cases = [
            Case("families", "fp32", name, "fixed", outcome=one, reason="x", comparisons=number)
            for name, one in outcomes.items()
            for number in [int(one == "pass")]
        ]
        return table.judged_nothing(Run(Header.here({}), cases, Footer.of(cases, 1.0)))

    yield must_fail
    table.pytest_sessionfinish(None, pytest.ExitCode.INTERRUPTED)


def test_a_run_in_which_no_family_predicts_fails(must_fail):
    assert must_fail({}) and must_fail({"bert": "skip", "gpt2": "skip"})
    assert not must_fail({"bert": "skip", "gpt2": "pass"})


def test_a_run_of_all_families_in_which_few_predict_fails(must_fail):
    outcomes = {name: "pass" if n < 40 else "skip" for n, name in enumerate(FAMILIES)}
    assert not must_fail(outcomes)
    assert must_fail(outcomes | {next(iter(outcomes)): "skip"})
