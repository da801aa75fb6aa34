"""The one judge makes one of seven outcomes, with its stage, of everything in a check."""

import importlib
import pkgutil

import pytest

import harness.checks
from harness.checks import Check, artifact_checks, core_ml_checks, run_check, value_checks
from harness.checks.run import defined_in
from harness.errors import CallTimeoutError, CrashError, HarnessError, NotInstalledError
from harness.results import Finding


def finding(**given):
    return Finding("toy", "here", comparisons=1, **given)


def judged(find, subject="a subject", runtime=None, **given):
    return run_check(Check("toy", find, **given), subject, runtime, suite="test")


def raising(error):
    def find(subject):
        yield finding()
        raise error

    return find


def test_sound_findings_pass_and_others_fail_with_every_sentence():
    assert judged(lambda subject: [finding()]).outcome == "pass"
    wrong = [finding(ok=False, message="x" * 900), finding(ok=False, message="is wrong")]
    case = judged(lambda subject: wrong)
    assert (case.outcome, case.failures) == ("fail", (f"here: {'x' * 900}", "here: is wrong"))
    assert len(case.reason) < 900 and "failures" not in case.to_json()


def test_a_check_that_compares_nothing_fails():
    assert judged(lambda subject: []).reason == "nothing was compared"


@pytest.mark.parametrize(
    ("error", "outcome", "detail"),
    [
        (NotInstalledError("no compiler"), "skip", ""),
        (CrashError("it died", "SIGSEGV"), "crash", "SIGSEGV"),
        (CallTimeoutError("it hangs"), "timeout", ""),
        (HarnessError("two epsilons"), "error", "check"),
    ],
)
def test_an_error_that_a_check_raises_is_an_outcome(error, outcome, detail):
    case = judged(raising(error))
    assert (case.outcome, case.reason, case.signal or case.stage) == (outcome, str(error), detail)
    assert not case.traceback


def test_a_bug_keeps_its_traceback():
    case = judged(raising(ZeroDivisionError("oh")))
    assert (case.outcome, case.stage) == ("error", "check")
    assert case.reason == "the check itself failed (ZeroDivisionError: oh); please report it"
    assert "in find" in case.traceback


def test_a_subject_that_cannot_be_opened_is_an_error_of_the_export():
    def subject():
        raise HarnessError("not an ExecuTorch program")

    case = judged(lambda subject: [finding()], subject)
    assert (case.outcome, case.stage) == ("error", "export")


def test_a_subject_is_opened_once_and_after_the_runtime_was_asked():
    opened = []
    case = judged(lambda subject: [finding()], lambda: opened.append(1))
    assert (case.outcome, opened) == ("pass", [1])
    case = judged(lambda s, r: [finding()], lambda: opened.append(2), "metal", takes_runtime=True)
    assert (case.outcome, case.stage, opened) == ("error", "runtime", [1])


def test_a_check_that_does_not_apply_is_skipped_with_the_first_reason():
    needs = (lambda subject: None, lambda subject: f"not for {subject}", lambda subject: "never")
    case = judged(raising(AssertionError), needs=needs)
    assert (case.outcome, case.reason) == ("skip", "not for a subject")


def test_every_check_that_a_module_of_the_room_defines_is_run():
    names = [module.name for module in pkgutil.iter_modules(harness.checks.__path__)]
    modules = [importlib.import_module(f"harness.checks.{name}") for name in names]
    every = artifact_checks() | value_checks() | core_ml_checks()
    assert defined_in(*modules) == every and len(every) >= 16
