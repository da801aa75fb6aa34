"""Fuzz the readers: mutated artifacts that are executed, or families of readers, by coverage.

Without a family, the command attempts mutated artifacts (`--cases`). With names of families, or
`all`, it fuzzes each for `--minutes`, guided by the coverage of the code, and keeps its corpus for
the next time. The exit status is 1 when something crashes, hangs, takes too much memory or raises
anything but a sentence, and 2 when it cannot fuzz. Faults of an earlier time are attempted first:
those that pass now are removed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path

from harness.errors import HarnessError, NotInstalledError
from harness.files import cache_folder
from harness.suites.fuzz.run import counted, results

_SHOW_SECONDS = 30.0  # between two lines about a family


def main() -> int:
    """Fuzz what the arguments name; print every fault and the counts."""
    parser = argparse.ArgumentParser(prog="python -m harness.suites.fuzz", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="a family of readers, or all")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each family (60)")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=20_26)
    parser.add_argument("--case", type=int, help="this one only")
    parser.add_argument("--without-pte", action="store_true", help="packages only: no export")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harness-fuzz-") as name:
        try:
            return (_guided if args.families else _mutated)(args, Path(name))
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


def _guided(args: argparse.Namespace, folder: Path) -> int:
    from harness.suites.fuzz.corpora import CORPORA, write_sources
    from harness.suites.fuzz.guided import SOUND, Outcome, fuzz

    if importlib.util.find_spec("atheris") is None:
        raise NotInstalledError("atheris is not installed: pip install 'coreml-llm-harness[fuzz]'")
    names = list(CORPORA) if args.families == ["all"] else args.families
    if unknown := [name for name in names if name not in CORPORA]:
        print(f"no family '{unknown[0]}'; choose from all, {', '.join(CORPORA)}", file=sys.stderr)
        return 2
    write_sources(folder)
    shown = 0.0

    def progress(outcome: Outcome) -> None:
        nonlocal shown
        if time.monotonic() - shown > _SHOW_SECONDS:
            shown = time.monotonic()
            print(f"... {outcome}", file=sys.stderr, flush=True)

    outcomes = []
    for name in names:
        corpus, faults = (cache_folder(f"fuzz/{name}/{kind}") for kind in ("corpus", "faults"))
        for number, data in enumerate(CORPORA[name](folder)):
            (corpus / f"{SOUND}{number}").write_bytes(data)
        outcomes.append(fuzz(name, folder, corpus, faults, 60 * args.minutes, progress))
        print(outcomes[-1], flush=True)
        for path in outcomes[-1].faults:
            print(f"    {path}")
    return int(any(outcome.faults or not outcome.executions for outcome in outcomes))


def _mutated(args: argparse.Namespace, folder: Path) -> int:
    """Make the sound artifacts, run the cases, print every failure and the counts."""
    from harness.suites.fuzz.programs import save_all

    first, end = (0, args.cases) if args.case is None else (args.case, args.case + 1)
    save_all(folder)
    if not args.without_pte:
        _add_exports(folder)
    found = []
    for result in results(folder, args.seed, first, end):
        found.append(result)
        if not result.passes or args.case is not None:
            print(f"case {result.case}, {result.kind}: {result.outcome}", flush=True)
            print(result.said, flush=True)
        if len(found) % 1000 == 0:
            print(f"... {len(found):,} cases", file=sys.stderr, flush=True)
    if not found:
        print("no case was run")
        return 1
    print(counted(found))
    return 0 if all(result.passes for result in found) else 1


def _add_exports(folder: Path) -> None:
    """Copy the exports of `tiny`, making those that are not there."""
    from harness.suites.conformance.subjects import Subjects

    subjects = Subjects(lambda stage: print(stage, file=sys.stderr))
    for mode in ("single", "multifunction"):
        shutil.copyfile(subjects.get("tiny", mode).artifact.path, folder / f"{mode}.pte")


if __name__ == "__main__":
    sys.exit(main())
