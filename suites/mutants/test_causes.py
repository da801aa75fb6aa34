"""One cause gives one finding: all checks run, and what rests on a broken part is not told again.

`harness check` runs every check on each mutant here, with its checkpoint. Of one fault it must tell
one finding, by the code of the cause; of two faults it must tell both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checks.subject import check
from harness.results import Case
from harness.suites.mutants.edit import Export
from harness.suites.mutants.faults import all_faults
from harness.suites.mutants.judge import broken

pytestmark = pytest.mark.mutant
CAUSES = {
    "two key caches swapped": "M02",
    "two outputs swapped": "M02",
    "an input named twice": "A01",
    "an input without a name": "M02",
    "a method without metadata": "A01",
    "metadata of no function": "M04",
    "another partition's package": "M03",
    "a function renamed": "A02",
    "another method's function": "A03",
    "no function named": "A03",
    "an unknown function": "A02",
    "a stray file": "A10",
    "a wrong count": "A11",
    "another size of an input": "A42",
    "another dtype described": "A42",
    "another dtype declared": "A50",
    "a state is read": "A60",
    "fp32 leaks": "A62",
    "an index of two tables": "M10",
    "a longer mask": "M11",
    "two rows' key inputs swapped": "M24",
    "the tables' inputs swapped": "M22",
    "one row of a table": "W02",
    "the mask ignored": "M21",
    "one epsilon": "W05",
    "two weights swapped": "W01",
    "silu is sigmoid": "N10",
}
PAIRS = {
    ("two outputs swapped", "two weights swapped"): {"M02", "W01"},
    ("another dtype described", "a stray file"): {"A10", "A42"},
    ("an index of two tables", "two weights swapped"): {"M10", "W01"},
    ("a stray file", "the mask ignored"): {"A10", "M21"},
    ("no function named", "a longer mask"): {"A03", "M11"},
    ("an uncalled function", "one epsilon"): {"S07", "W05"},
}


def told(*names: str, folder: Path) -> tuple[list[str], list[Case]]:
    """Return the codes that all checks find in an artifact with these faults, and the cases."""

    def mutate(export: Export) -> None:
        for name in names:
            all_faults()[name].mutate(export)

    cases = list(check(broken(mutate, "multifunction", folder), ["mil:widen"]))
    assert not [case.traceback for case in cases if case.traceback]
    return [one.code for case in cases if not case.passes for one in case.findings], cases


@pytest.mark.parametrize("name", CAUSES)
def test_one_fault_is_told_once_by_the_code_of_its_cause(name: str, tmp_path: Path) -> None:
    codes, cases = told(name, folder=tmp_path)
    assert codes == [CAUSES[name]], {case.check: case.reason for case in cases if not case.passes}
    skipped = [case.reason for case in cases if case.reason.startswith("because of")]
    assert all(reason.startswith(f"because of {codes[0]} ") for reason in skipped), skipped


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_two_faults_are_both_told(names: tuple[str, str], tmp_path: Path) -> None:
    codes, cases = told(*names, folder=tmp_path)
    assert set(codes) == PAIRS[names] and len(codes) == 2, {
        case.check: case.reason for case in cases if not case.passes
    }
