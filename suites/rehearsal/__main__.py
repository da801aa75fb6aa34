"""Run the steps of the Mac job, record a case of each, and say what a rehearsal cannot show."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from harness.errors import HarnessError
from harness.report import run_table, write_report
from harness.results import Case, Header, Writer, read_run
from harness.suites.rehearsal.stand_in import MEASURED, lines_of
from harness.suites.rehearsal.steps import environment, mac_steps, run, write_programs

SHARE = 0.95  # of the lines of the Mac's runtimes
NOT_SHOWN = """\
A rehearsal runs the lane's own logic. Of each of our tests it runs one of the parameters, and none
of the mutants, unless `--everything` asks for all. It cannot show
  - a number, a time, a placement or a refusal of Core ML: our executor answers in its place;
  - ExecuTorch's Core ML delegate, its model cache, and crashes in either;
  - what installs on macOS (`nox -R` uses this environment), and the arm64 code of torch and numba;
  - macOS's file system: no difference of case, /private before /tmp, its errors and limits;
  - the commands of another Mac: mac.toml has those of a hosted macOS 15;
  - a GPU, a Neural Engine, Xcode or an iPhone: tests give them devices and answers of their own.
"""


def main() -> int:
    """Rehearse the job, or the steps that are named; return 1 when one fails."""
    parser = argparse.ArgumentParser(prog="harness.suites.rehearsal", description=main.__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="sessions of nox, by default all")
    parser.add_argument("--nox", required=True, metavar="PYTHON", help="a Python that has nox")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument(
        "--everything", action="store_true", help="all parameters of our tests, not one of each"
    )
    arguments = parser.parse_args()
    try:
        folder = arguments.results / "rehearsal"
        return rehearse(arguments.steps, arguments.nox, folder, arguments.everything)
    except HarnessError as error:
        print(f"suites.rehearsal: {error}", file=sys.stderr)
        return error.exit_status


def rehearse(names: list[str], nox_python: str, folder: Path, everything: bool = False) -> int:
    """Run the steps, write their cases to a folder and print them; return the exit status.

    Raises HarnessError for a name that is not a step of the job.
    """
    steps = {step.session: step for step in mac_steps()}
    if unknown := [name for name in names if name not in steps]:
        raise HarnessError(f"no step '{unknown[0]}' in the Mac job; it has {', '.join(steps)}")
    options = {"steps": names or list(steps), "everything": everything}
    with (
        tempfile.TemporaryDirectory(prefix="harness-rehearsal-") as work,
        Writer(folder / "rehearsal.jsonl", Header.here(options)) as writer,
    ):
        lines = Path(work, "lines")
        lines.touch()
        write_programs(Path(work))
        variables = environment(Path(work), lines, everything)
        for name, step in steps.items():
            if names and name not in names:
                continue
            print(f"rehearsal: nox -s {name} -- {' '.join(step.arguments)}", flush=True)
            start = time.perf_counter()
            status = run(step, nox_python, variables)
            writer.add(
                Case(
                    "rehearsal",
                    name,
                    outcome="fail" if status else "pass",
                    reason=f"exit status {status}; see its output" if status else "",
                    comparisons=1,
                    seconds=round(time.perf_counter() - start, 3),
                )
            )
        if not names:
            for case in line_cases(lines.read_text(encoding="utf-8").split()):
                writer.add(case)
    found = read_run(folder / "rehearsal.jsonl")
    write_report(found, folder)
    print(run_table(found, colours=sys.stdout.isatty()))
    print(NOT_SHOWN)
    return int(not all(case.passes for case in found.cases))


def line_cases(noted: list[str]) -> Iterator[Case]:
    """Yield a case for each module of the Mac's runtimes: the share of its lines that ran."""
    ran = Counter(noted)
    for module in MEASURED:
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None, module
        lines = lines_of(Path(spec.origin))
        missed = sorted(line for line in lines if f"{module}:{line}" not in ran)
        share = 1 - len(missed) / len(lines)
        yield Case(
            "rehearsal",
            f"lines of {module}",
            outcome="pass" if share >= SHARE else "fail",
            reason=""
            if share >= SHARE
            else f"{share:.0%} of its lines ran; {', '.join(map(str, missed))} did not",
            comparisons=len(lines),
            facts={
                "lines": len(lines),
                "lines not run": ", ".join(map(str, missed)) or "none",
            },
        )


if __name__ == "__main__":
    sys.exit(main())
