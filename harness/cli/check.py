"""`harness check FILE`: every check that applies to an artifact, on the runtimes that are here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, NotInstalledError

if TYPE_CHECKING:
    from harness.checks import Check
    from harness.cli.progress import Progress
    from harness.results import Case
    from harness.subject import Subject

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
    """Run the checks; return 1 when one of them failed, else 0."""
    from harness.subject import Subject

    if (args.checkpoint is None) != (args.params is None):
        raise HarnessError("--checkpoint and --params go together: give both, or neither")
    chosen = _chosen(args.check)
    runtimes = _runtimes(args.runtime)
    subject = Subject(args.file, args.checkpoint, args.params)
    _refuse(subject)
    cases = []
    for case in _cases(subject, chosen, runtimes, args.progress):
        cases.append(case)
        if not args.json:
            print("\n      ".join([_line(case), *case.failures]), flush=True)
    if args.json:
        print(json.dumps([case.to_json() for case in cases], indent=2))
    else:
        print(f"\n{_summary(cases)}")
    passed = any(case.outcome == "pass" for case in cases)
    return 0 if passed and all(case.passes for case in cases) else 1


def _chosen(names: list[str] | None) -> list[Check[Subject]]:
    from harness.checks import artifact_checks

    checks = artifact_checks()
    for name in names or ():
        if name not in checks:
            raise HarnessError(f"no check '{name}'; choose from {', '.join(checks)}")
    return [check for name, check in checks.items() if not names or name in names]


def _runtimes(names: list[str] | None) -> list[str]:
    """Return the runtimes' names; raise NotInstalledError for a named one that is missing."""
    from harness.fixtures.project import project
    from harness.runtimes import RUNTIMES, default_runtime, get_runtime

    names = names or list(project().runtimes)
    if not names:
        usual = [row.name for row in RUNTIMES.values() if row.in_check]
        return list(dict.fromkeys((*usual, default_runtime())))
    for name in names:
        if reason := get_runtime(name).unavailable():
            raise NotInstalledError(f"runtime {name} cannot be used here: {reason}")
    return list(dict.fromkeys(get_runtime(name).name for name in names))


def _refuse(subject: Subject) -> None:
    """Raise HarnessError for what cannot be judged: no language model, or another's checkpoint.

    The checks judge the artifact itself.
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
    subject: Subject, checks: list[Check[Subject]], runtimes: list[str], progress: Progress
) -> Iterator[Case]:
    from harness.checks import run_check

    pairs = [(c, runtime) for c in checks for runtime in (runtimes if c.takes_runtime else [None])]
    for done, (check, runtime) in enumerate(pairs):
        where = f" on {runtime}" if runtime else ""
        progress(f"checking {check.name}{where}", done, len(pairs))
        yield run_check(check, subject, runtime, suite="check", mode=subject.mode)


def _line(case: Case) -> str:
    """Return a case as a line: its outcome, its check, and its figures or its reason."""
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
