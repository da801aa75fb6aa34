"""The result stream of the suite: the cases that `harness check` printed, of all subjects."""

from __future__ import annotations

from collections import defaultdict

import pytest

from harness.checks.findings import rows
from harness.results import Case, Run
from harness.suites.healthy.other_models import complaints
from harness.suites.results import (
    Recorder,
    add_results_option,
    pytest_runtest_makereport,
    record_judged,
    start_recording,
)
from harness.text import counted

__all__ = ["pytest_runtest_makereport", "record_judged"]


class _Recorder(Recorder):
    """Prints a line for each artifact, and the warnings by their codes, each with a place."""

    def summary(self, run: Run, colours: bool) -> str:
        """Return both lists and a last line; colours are not used."""
        artifacts: dict[tuple[str, str], list[Case]] = defaultdict(list)
        for case in run.cases:
            artifacts[case.fixture, case.mode].append(case)
        lines, warned = [], defaultdict(list)
        for (name, mode), cases in artifacts.items():
            codes = set()
            for case in cases:
                for found in case.findings:
                    if found.warning:
                        codes.add(found.code)
                        warned[found.code].append(f"{name}/{mode}: {found.sentences[0]}")
            verdict = "COMPLAINT" if any(complaints(cases)) else "healthy"
            passed = counted(sum(case.outcome == "pass" for case in cases), "check")
            lines.append(
                f"{verdict:10} {name}/{mode}: {passed} passed {' '.join(sorted(codes))}".rstrip()
            )
        for code, places in sorted(warned.items()):
            lines.append(f"{code} {counted(len(places), 'warning')}: {rows()[code].sentence}")
            lines.append(f"    {places[0]}")
        bad = sum(line.startswith("COMPLAINT") for line in lines)
        many = sum(map(len, warned.values()))
        end = f"{counted(len(artifacts), 'artifact')}, {counted(bad, 'complaint')}, "
        return "\n".join([*lines, end + counted(many, "warning")])


def pytest_addoption(parser: pytest.Parser) -> None:
    add_results_option(parser.getgroup("healthy"), "results/healthy")


def pytest_configure(config: pytest.Config) -> None:
    start_recording(config, "healthy", config.getoption("results"), {}, recorder=_Recorder)
