"""Attempt ten thousand mutated artifacts; the exit status is 1 when one crashes or hangs."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from harness.suites.fuzz.programs import save_all
from harness.suites.fuzz.run import counted, results


def main() -> int:
    """Make the sound artifacts, run the cases, print every failure and the counts."""
    parser = argparse.ArgumentParser(prog="python -m harness.suites.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=20_26)
    parser.add_argument("--case", type=int, help="this one only")
    parser.add_argument("--without-pte", action="store_true", help="packages only: no export")
    args = parser.parse_args()
    first, end = (0, args.cases) if args.case is None else (args.case, args.case + 1)
    with tempfile.TemporaryDirectory(prefix="harness-fuzz-") as name:
        folder = Path(name)
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
