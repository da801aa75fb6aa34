"""One test, one case: run a check, record what it found, fail when it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from harness.checks import Check
from harness.errors import HarnessError, NotInstalledError
from harness.results import Case, Finding, Writer, case_from_findings
from harness.runtimes import get_runtime
from harness.subject import Subject
from suites.conformance.subjects import Subjects
from suites.known import known_issue


class Judge:
    """Judges one subject by one check."""

    def __init__(self, stream: Writer, subjects: Subjects, fixture_name: str, mode: str) -> None:
        self._stream = stream
        self._subjects = subjects
        self._name = {"suite": "conformance", "fixture": fixture_name, "mode": mode}
        self.recorded = False

    def __call__(self, check: Check, runtime: str | None = None) -> None:
        """Run a check of the registry."""
        self.findings(check.name, lambda subject: self._run(check, subject, runtime), runtime)

    def findings(
        self,
        check: str,
        find: Callable[[Subject], Iterable[Finding]],
        runtime: str | None = None,
    ) -> None:
        """Record what `find` finds as one case, and tell pytest how it went."""
        names = {**self._name, "check": check, "runtime": runtime or "-"}
        start = time.perf_counter()
        stage = "runtime"
        try:
            if runtime is not None and (reason := get_runtime(runtime).unavailable()):
                raise NotInstalledError(reason)
            stage = "export"
            subject = self._subjects.get(names["fixture"], names["mode"])
            stage = "check"
            case = case_from_findings(find(subject), **names)
        except NotInstalledError as error:
            case = Case(**names, outcome="skip", reason=str(error))
        except HarnessError as error:
            case = _error_case(error, stage, names)
        except Exception as error:  # a mistake of the harness, or of a library it calls
            reason = f"{type(error).__name__}: {error}"
            self._stream.add(Case(**names, outcome="error", stage=stage, reason=reason))
            raise
        self._record(case, time.perf_counter() - start)

    @staticmethod
    def _run(check: Check, subject: Subject, runtime: str | None) -> Iterable[Finding]:
        if reason := check.inapplicable(subject):
            raise NotInstalledError(reason)
        return check.findings(subject, runtime)

    def _record(self, case: Case, seconds: float) -> None:
        case = replace(case, seconds=round(seconds, 3))
        if issue := known_issue(case):
            case = case.judged_against_known(issue)
        self._stream.add(case)
        self.recorded = True
        if case.outcome in ("skip", "known"):
            pytest.skip(case.summary)
        if case.outcome != "pass":
            pytest.fail(f"{case.outcome}: {case.summary}", pytrace=False)


def _error_case(error: HarnessError, stage: str, names: dict[str, str]) -> Case:
    """Return the case of an error: a crash names its signal, a timeout is one, all else a stage."""
    if signal := getattr(error, "signal", None):
        return Case(**names, outcome="crash", signal=str(signal), reason=str(error))
    if getattr(error, "timed_out", False):
        return Case(**names, outcome="timeout", reason=str(error))
    return Case(**names, outcome="error", stage=stage, reason=str(error))
