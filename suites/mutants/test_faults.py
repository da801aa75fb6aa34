"""Every fault of the table is found, at its place; and nothing complains about a sound control.

`nox -s tests` makes the mutants of the kinds that a row calls `tested`, and `nox -s mutants` all.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.checks import Check, artifact_checks, run_check, value_checks
from harness.results import Case, Finding
from harness.suites.mutants.edit import touch_everything
from harness.suites.mutants.faults import BOTH, Fault, Mutant, all_faults
from harness.suites.mutants.judge import CONTROL, MakeMutant, judged

pytestmark = pytest.mark.mutant
Record = Callable[[Iterable[Case]], None]
ROWS = all_faults()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("every_fault") is not None
    chosen = [
        (fault, mode, kind)
        for fault in ROWS.values()
        for mode in fault.modes
        for kind in (fault.kinds if every else fault.tested)
    ]
    if "fault" in metafunc.fixturenames:
        names = [f"{fault.name}-{mode}-{kind}" for fault, mode, kind in chosen]
        metafunc.parametrize(("fault", "mode", "kind"), chosen, ids=names)
    if "judge" in metafunc.fixturenames:
        shared = [(fault.judge.__name__, *where) for fault, *where in chosen if fault.has_control]
        controls = sorted(set(shared))
        metafunc.parametrize(("judge", "mode", "kind"), controls)


def test_a_mutant_is_found(
    record_judged: Record, fault: Fault, mode: str, kind: str, tmp_path: Path
) -> None:
    find = partial(_found, fault=fault, mode=mode, kind=kind)
    check: Check[Path] = Check(fault.name, find)
    case = run_check(check, tmp_path, suite="mutants", fixture=kind, mode=mode)
    record_judged([case])
    assert case.outcome == "pass", f"{case.reason}\n{case.traceback}"


def _found(folder: Path, fault: Fault, mode: str, kind: str) -> Iterator[Finding]:
    """Break and judge; each check of the row must say its sentence."""
    sentences = fault.sentences(kind)
    found = fault.judge(Mutant(fault.mutate, mode, kind, folder), tuple(sentences))
    facts = {"room": fault.room, "found by": " ".join(sentences)}
    place = ""
    for check, sentence in sentences.items():
        said = next((text for text in found.get(check, ()) if re.search(sentence, text)), "")
        place = place or said
        message = f"says {list(found.get(check, ['nothing']))}, not {sentence!r}"
        yield Finding(fault.name, check, bool(said), message, comparisons=1)
    others = sorted(found.keys() - sentences.keys()) if fault.alone else []
    message = f"{others} complain, too: {[found[name] for name in others]}"
    yield Finding(
        fault.name, "", not others, message, facts=facts | {"place": place[:200]}, comparisons=1
    )


def test_nothing_complains_about_a_control(
    record_judged: Record, judge: str, mode: str, kind: str, tmp_path: Path
) -> None:
    find = partial(_complaints, judge=judge, mode=mode, kind=kind)
    check: Check[Path] = Check(f"{CONTROL}{judge}", find)
    case = run_check(check, tmp_path, suite="mutants", fixture=kind, mode=mode)
    record_judged([case])
    assert case.outcome == "pass", f"{case.reason}\n{case.traceback}"


def _complaints(folder: Path, judge: str, mode: str, kind: str) -> Iterator[Finding]:
    """Judge the sound artifact by every check that has to find a fault."""
    rows = [
        row
        for row in ROWS.values()
        if row.judge.__name__ == judge and mode in row.modes and kind in row.kinds
    ]
    names = tuple(dict.fromkeys(check for row in rows for check in row.sentences(kind)))
    found = rows[0].judge(Mutant(None, mode, kind, folder), names)
    for check in names:
        yield Finding(check, check, check not in found, f"{found.get(check)}", comparisons=1)
    for check in found.keys() - set(names):
        yield Finding(check, check, False, f"{found[check]}", comparisons=1)


def test_every_check_has_a_fault_that_it_finds() -> None:
    found = {check for row in ROWS.values() for check in row.by}
    assert found >= set(artifact_checks()) | set(value_checks())


@pytest.mark.parametrize("mode", BOTH)
def test_a_control_passes_every_check(mutant: MakeMutant, mode: str) -> None:
    subject = mutant(touch_everything, mode)
    applicable = [
        name for name, check in artifact_checks().items() if not check.inapplicable(subject)
    ]
    assert len(applicable) >= 14
    assert {name: judged(subject, name).outcome for name in applicable} == dict.fromkeys(
        applicable, "pass"
    )


def test_a_fault_stands_for_each_report() -> None:
    listed = tomllib.loads((Path(__file__).parent / "reports.toml").read_text(encoding="utf-8"))
    named = {report for row in ROWS.values() for report in row.reports}
    assert named == listed["failures"].keys() | listed["field"].keys()
    assert not named & listed["without"].keys()
