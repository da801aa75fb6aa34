"""A sample of mutated artifacts, and a proof that the suite detects each kind of failure."""

import os
import time

import pytest
import torch

from harness.errors import HarnessError
from harness.suites.fuzz import run, worker
from harness.suites.fuzz.cases import Case, Sources
from harness.suites.fuzz.programs import save_all
from harness.suites.fuzz.run import Result, counted, results

SAMPLE = 300
pytestmark = pytest.mark.linux  # the worker measures and limits its memory through /proc


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sound")
    save_all(made)
    return made


@pytest.mark.timeout(240)
def test_a_sample_is_executed_or_refused_with_a_sentence(folder):
    found = list(results(folder, 7, 0, SAMPLE))
    assert [result for result in found if not result.passes] == []
    assert len(found) == SAMPLE
    outcomes = [result.outcome for result in found]
    assert outcomes.count("executed") > 50 and outcomes.count("refused") > 100


def test_a_case_is_made_of_the_seed_and_its_number_alone(folder):
    one, other = Sources(folder), Sources(folder)
    other.case(1, 2)
    assert [one.case(1, n).size for n in range(9)] == [other.case(1, n).size for n in range(9)]


def attempted(run, monkeypatch, what="mutated"):
    """Attempt a case in this process, without limiting its address space."""
    monkeypatch.setattr(worker, "limit_memory", lambda more: None)
    return worker.attempt(Case("fields", 1000, run), what)


def test_an_error_of_ours_passes_when_it_names_the_artifact(monkeypatch):
    def refuse():
        raise HarnessError("mutated, function 'main': nothing to run")

    assert attempted(refuse, monkeypatch)["outcome"] == "refused"
    assert attempted(refuse, monkeypatch, "another")["outcome"] == "nameless"


def test_any_other_error_is_an_exception(monkeypatch):
    assert attempted(lambda: 1 // 0, monkeypatch)["outcome"] == "exception"


def test_an_allocation_that_failed_counts_although_it_was_refused(monkeypatch):
    def ask():
        try:
            torch.zeros(1 << 50)
        except RuntimeError as error:
            raise HarnessError("mutated: too large") from error

    assert attempted(ask, monkeypatch)["outcome"] == "memory"


def test_memory_is_measured_at_its_peak(monkeypatch):
    monkeypatch.setattr(worker, "GIGABYTE", 100 << 20)

    def take():
        torch.ones(50 << 20)  # 200 MB, freed at once
        return True

    result = attempted(take, monkeypatch)
    assert result["outcome"] == "memory" and result["memory"] > 190 << 20


class _Failing(Sources):
    """Case 1 hangs, case 2 ends the process; the others are executed."""

    def check(self):
        pass

    def case(self, seed, number):
        run = {1: lambda: time.sleep(60), 2: lambda: os._exit(11)}.get(number, lambda: True)
        return Case("fields", 1000, run)


def test_a_hang_and_a_crash_are_results_and_the_run_goes_on(folder, monkeypatch):
    monkeypatch.setattr(run, "WORKER", "tests.fuzz.test_fuzz")
    monkeypatch.setattr(run, "LONGEST", 3.0)
    found = list(results(folder, 0, 0, 4))
    assert [result.outcome for result in found] == ["executed", "hang", "crash", "executed"]
    assert "4 cases, 2 failed" in counted(found)


def test_a_failure_between_cases_ends_the_run_with_the_childs_words(tmp_path):
    with pytest.raises(HarnessError, match="(?s)exit status 1.*no sound artifacts in"):
        list(results(tmp_path, 0, 0, 1))


def test_counts_say_the_longest_and_the_largest():
    said = counted([Result(0, "bytes", "refused", seconds=1.5), Result(1, "pte", "executed")])
    assert "1 refused" in said and "1.5 s (case 0)" in said and "2 cases, 0 failed" in said


if __name__ == "__main__":
    worker.Sources = _Failing
    worker.main()
