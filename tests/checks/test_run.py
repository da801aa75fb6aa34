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
    assert case.outcome == "fail"
    assert [one.evidence for one in case.findings] == ["x" * 900, "is wrong"]
    assert len(case.reason) < 900 and len(case.to_json()["findings"][0]["evidence"]) == 400


def test_a_check_that_compares_nothing_fails():
    assert judged(lambda subject: []).reason == "N02 nothing was compared"


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


def test_a_warning_passes_unless_the_run_is_strict():
    warned = [finding(), finding(ok=False, message="may overflow", warning=True)]
    case = judged(lambda subject: warned)
    assert (case.outcome, [one.warning for one in case.findings]) == ("pass", [True])
    strict = run_check(Check("toy", lambda subject: warned), None, suite="test", strict=True)
    assert (strict.outcome, strict.reason) == ("fail", "here: may overflow")
    assert judged(lambda subject: [*warned, finding(ok=False, message="is wrong")]).reason == (
        "here: is wrong"
    )


def test_equal_findings_are_one_with_all_their_places():
    def wrong(where, message, code="A50"):
        return Finding("types", where, False, message, 1, code=code)

    given = [wrong(f"function '{n}'", f"add '{n}' gives {n} values") for n in range(3)]
    given += [wrong("function '0'", "mul '0' has no type"), wrong("a", "add '0' gives 0", "A52")]
    case = judged(lambda subject: given)
    first, *others = case.findings
    assert (first.count, first.others) == (3, ("function '1'", "function '2'"))
    assert [(one.code, one.count) for one in others] == [("A50", 1), ("A52", 1)]
