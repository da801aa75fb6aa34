"""`harness check FILE`: every check that applies to an artefact, on the runtimes that are here."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, NotInstalledError

if TYPE_CHECKING:
    from harness.checks import Check, Subject
    from harness.report import Case

EXECUTORS = ("mil:strict", "mil:widen")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .pte of a Core ML language model")
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint it was exported from")
    parser.add_argument("--params", type=Path, help="the checkpoint's params.json")
    parser.add_argument(
        "--runtime",
        action="append",
        help="where to execute it (default: our executor, and on a Mac Core ML); may be repeated",
    )
    parser.add_argument("--check", action="append", help="only this check; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the cases as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the checks; 1 when one of them failed, 3 when a runtime that was asked for is missing."""
    from harness.checks import Subject

    if (args.checkpoint is None) != (args.params is None):
        raise HarnessError("--checkpoint and --params go together: give both, or neither")
    chosen = _chosen(args.check)
    runtimes = _runtimes(args.runtime)
    subject = Subject(args.file, args.checkpoint, args.params)
    if subject.artifact.pte is None:
        raise HarnessError(f"{args.file}: only a .pte can be checked; `harness inspect` shows this")
    # What is no language model, or does not fit its checkpoint, is refused before the first check.
    _ = subject.mode, subject.expected_weights
    cases = []
    for case in _cases(subject, chosen, runtimes):
        cases.append(case)
        if not args.json:
            print(_line(case), flush=True)
    failed = sum(not case.passes for case in cases)
    if args.json:
        print(json.dumps([case.to_json() for case in cases], indent=2))
    else:
        compared = sum(case.comparisons for case in cases)
        print(f"\n{len(cases)} checks, {failed} failed, {compared:,} comparisons")
    return 1 if failed or not any(case.outcome == "pass" for case in cases) else 0


def _chosen(names: list[str] | None) -> list[Check]:
    from harness.checks import CHECKS

    for name in names or ():
        if name not in CHECKS:
            raise HarnessError(f"no check '{name}'; choose from {', '.join(CHECKS)}")
    return [check for name, check in CHECKS.items() if not names or name in names]


def _runtimes(names: list[str] | None) -> list[str]:
    """Return the runtimes' names; one that was asked for and is not here is an error."""
    from harness.runtimes import default_runtime, get_runtime

    if not names:
        return list(dict.fromkeys((*EXECUTORS, default_runtime())))
    for name in names:
        if reason := get_runtime(name).unavailable():
            raise NotInstalledError(f"runtime {name} cannot be used here: {reason}")
    return list(dict.fromkeys(get_runtime(name).name for name in names))


def _cases(subject: Subject, checks: list[Check], runtimes: list[str]) -> Iterator[Case]:
    for check in checks:
        for runtime in runtimes if check.takes_runtime else [None]:
            start = time.perf_counter()
            case = _case(subject, check, runtime)
            yield replace(case, seconds=round(time.perf_counter() - start, 3))


def _case(subject: Subject, check: Check, runtime: str | None) -> Case:
    from harness.report import Case, case_from_findings

    names: dict[str, Any] = {"suite": "check", "check": check.name, "mode": subject.mode}
    names["runtime"] = runtime or "-"
    if reason := check.inapplicable(subject):
        return Case(**names, outcome="skip", reason=reason)
    try:
        return case_from_findings(check.findings(subject, runtime), **names)
    except HarnessError as error:
        return Case(**names, outcome="error", stage="check", reason=str(error))


def _line(case: Case) -> str:
    """Say how a check went: its outcome, its name, and what was measured or what is wrong."""
    where = "" if case.runtime == "-" else f" on {case.runtime}"
    detail = case.summary or "; ".join(
        f"{name} {figure}" for name, figure in case.figures.items() if figure.bound is not None
    )
    count = f" ({case.comparisons:,} comparisons)" if case.comparisons else ""
    return f"{case.outcome:5} {case.check}{where}{count}{': ' if detail else ''}{detail}"
