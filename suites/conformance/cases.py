"""One test, one case: run a check on the test's subject, and record the case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.checks import Check, run_check
from harness.results import Case
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects


@dataclass(frozen=True)
class Judge:
    """Judges one subject by one check, for a suite."""

    suite: str
    record: Callable[[Case], None]
    subjects: Subjects
    fixture_name: str
    mode: str
    strict: bool = False  # warnings fail

    def __call__(self, check: Check[Subject], runtime: str | None = None) -> None:
        """Run a check on the subject, which is exported and opened on first use."""
        case = run_check(
            check,
            lambda: self.subjects.get(self.fixture_name, self.mode),
            runtime,
            suite=self.suite,
            fixture=self.fixture_name,
            mode=self.mode,
            strict=self.strict,
        )
        self.record(case)
