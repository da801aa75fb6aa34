"""`harness check FILE`: every check that applies to an artifact, on the runtimes that are here."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, NotInstalledError

if TYPE_CHECKING:
    from harness.checks import Check
    from harness.results import Case, Finding
    from harness.subject import Subject

EXECUTORS = ("mil:strict", "mil:widen")
_SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file", metavar="FILE", help="a .pte or exported folder of a Core ML language model"
    )
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint it was exported from")
    parser.add_argument("--params", type=Path, help="its params.json or config.json")
    parser.add_argument(
        "--runtime",
        action="append",
        help="where to execute it (default: our executor, and on a Mac Core ML); may be repeated",
    )
    parser.add_argument("--check", action="append", help="only this check; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the cases as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the checks; 1 when one of them failed, 3 when a runtime that was asked for is missing."""
    from harness.subject import Subject

    if (args.checkpoint is None) != (args.params is None):
        raise HarnessError("--checkpoint and --params go together: give both, or neither")
    chosen = _chosen(args.check)
    runtimes = _runtimes(args.runtime)
    subject = Subject(args.file, args.checkpoint, args.params)
    _refuse(subject)
    cases = []
    for case, failures in _cases(subject, chosen, runtimes):
        cases.append(case)
        if not args.json:
            print("\n      ".join([_line(case), *failures]), flush=True)
    if args.json:
        print(json.dumps([case.to_json() for case in cases], indent=2))
    else:
        print(f"\n{_summary(cases)}")
    passed = any(case.outcome == "pass" for case in cases)
    return 0 if passed and all(case.passes for case in cases) else 1


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


def _refuse(subject: Subject) -> None:
    """Raise HarnessError for what cannot be judged: no language model, or another's checkpoint.

    What is wrong with the artifact itself is left to the checks.
    """
    path = subject.artifact.path
    if subject.artifact.pte is None:
        raise HarnessError(
            f"{path}: only a .pte or an exported folder can be checked; `harness inspect` shows it"
        )
    _ = subject.mode
    if subject.checkpoint is None or subject.params is None:
        return
    from harness.models.checkpoint import load_checkpoint
    from harness.models.config import load_params

    params = load_params(subject.params)
    load_checkpoint(subject.checkpoint, params)  # mapped: only its names and shapes are read
    try:
        held = subject.held
    except HarnessError:
        return
    wrong = [n for n in _SIZES if getattr(held, n) != getattr(params, n)]
    if wrong:
        sizes = "; ".join(f"{n} is {getattr(held, n)}, not {getattr(params, n)}" for n in wrong)
        raise HarnessError(
            f"{path} was not exported from {subject.checkpoint}: {sizes}; give its own checkpoint"
        )


def _cases(
    subject: Subject, checks: list[Check], runtimes: list[str]
) -> Iterator[tuple[Case, list[str]]]:
    """Yield each check's case with a sentence for everything that is wrong."""
    for check in checks:
        for runtime in runtimes if check.takes_runtime else [None]:
            start = time.perf_counter()
            case, failures = _judge(subject, check, runtime)
            yield replace(case, seconds=round(time.perf_counter() - start, 3)), failures


def _judge(subject: Subject, check: Check, runtime: str | None) -> tuple[Case, list[str]]:
    from harness.results import Case, case_from_findings

    names: dict[str, Any] = {"suite": "check", "check": check.name, "mode": subject.mode}
    names["runtime"] = runtime or "-"
    try:
        if reason := check.inapplicable(subject):
            return Case(**names, outcome="skip", reason=reason), []
        findings = tuple(check.findings(subject, runtime))
    except HarnessError as error:
        return Case(**names, **_broken(error)), []
    except Exception as error:  # a mistake of ours, which must not hide what other checks find
        reason = f"the check itself failed ({type(error).__name__}: {error}); please report it"
        return Case(**names, outcome="error", stage="check", reason=reason), []
    case = case_from_findings(findings, **names)
    return case, _failures(case, findings)


def _broken(error: HarnessError) -> dict[str, Any]:
    """Return the outcome of a check that could not end: a crash, a timeout, or an error."""
    if signal := getattr(error, "signal", None):
        return {"outcome": "crash", "signal": str(signal), "reason": str(error)}
    if getattr(error, "timed_out", False):
        return {"outcome": "timeout", "reason": str(error)}
    return {"outcome": "error", "stage": "check", "reason": str(error)}


def _failures(case: Case, findings: Sequence[Finding]) -> list[str]:
    """Return a sentence for each finding that is wrong, and for each figure beyond its bound."""
    wrong = [f"{finding.where}: {finding.message}" for finding in findings if not finding.ok]
    beyond = [f"{name} is {f}" for name, f in case.figures.items() if not f.within_bound]
    nothing = [] if case.comparisons else ["nothing was compared"]
    return wrong + beyond + nothing


def _line(case: Case) -> str:
    """Say how a check went: its outcome, its name, and what was measured or why it could not be."""
    where = "" if case.runtime == "-" else f" on {case.runtime}"
    count = f" ({case.comparisons:,} comparisons)" if case.comparisons else ""
    bounded = [(name, f) for name, f in case.figures.items() if f.bound is not None]
    figures = "; ".join(f"{name} {f}" for name, f in bounded if f.within_bound)
    detail = figures if case.outcome in ("pass", "fail") else case.reason
    return f"{case.outcome:5} {case.check}{where}{count}{': ' if detail else ''}{detail}"


def _summary(cases: list[Case]) -> str:
    failed = sum(not case.passes for case in cases)
    skipped = sum(case.outcome == "skip" for case in cases)
    compared = sum(case.comparisons for case in cases)
    if skipped == len(cases):
        return f"nothing was checked: {skipped} skipped"
    return (
        f"{len(cases) - skipped} checks, {failed} failed, {skipped} skipped; "
        f"{compared:,} comparisons"
    )
