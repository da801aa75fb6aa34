"""One test, one case: run a check, record the case, and tell pytest how it went."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checks import Check, run_check
from harness.results import Writer, read_known
from harness.subject import Subject
from suites.conformance.subjects import Subjects

KNOWN = read_known(Path(__file__).parents[1] / "known.toml")


class Judge:
    """Judges one subject by one check."""

    def __init__(self, stream: Writer, subjects: Subjects, fixture_name: str, mode: str) -> None:
        self._stream = stream
        self._subjects = subjects
        self._fixture_name, self._mode = fixture_name, mode
        self.recorded = False

    def __call__(self, check: Check[Subject], runtime: str | None = None) -> None:
        """Run a check on the subject, which is exported and opened when it is needed."""
        case = run_check(
            check,
            lambda: self._subjects.get(self._fixture_name, self._mode),
            runtime,
            suite="conformance",
            fixture=self._fixture_name,
            mode=self._mode,
            known=KNOWN,
        )
        self._stream.add(case)
        self.recorded = True
        if case.outcome in ("skip", "known"):
            pytest.skip(case.summary)
        if case.outcome != "pass":
            pytest.fail(f"{case.outcome}: {case.summary}\n{case.traceback}".rstrip(), pytrace=False)
