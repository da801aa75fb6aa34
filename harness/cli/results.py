"""`harness conformance`, `report` and `gate`: make a result file, draw it, compare two."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.measure import GateResult, Metric

_SUITE = Path(harness.__file__).with_name("suites") / "conformance"
# header -> widest cell; the reason takes the rest of the line.
COLUMNS = {"metric": 34, "base": 18, "head": 18, "verdict": 12}
INDENT = "  "
# Verdicts that are counted, and listed only when asked for.
QUIET = ("same", "skipped")
MERGED = "merged.jsonl"  # where the merged streams have different names
HEADLINES = {0: "PASSED", 1: "FAILED", 4: "UNDECIDED"}


def add_conformance_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness conformance`; pytest reads them all."""
    parser.usage = "harness conformance [--fixture F] [--exporter E] [--mode M] [--runtime R] ..."
    parser.epilog = (
        "Each option may be repeated, and pytest's own options are passed on. Results are written "
        "to `results/`, or to the folder of --results."
    )


def conformance(args: argparse.Namespace) -> int:
    """Run pytest on the suite; return 0 when all passed, 1 on a failure, 2 for a wrong option.

    Raises KeyboardInterrupt when the user interrupted pytest.
    """
    import pytest

    status = pytest.main([str(_SUITE), "-p", "no:cacheprovider", *args.words])
    usage = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status in usage:
        return 2
    if status == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return int(status != pytest.ExitCode.OK)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN.jsonl",
        help="the result file of a run, or the files of all its shards, which are merged",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="write table.txt, junit.xml, index.html and a merged result file here; without it, "
        "only print",
    )
    parser.add_argument("--json", action="store_true", help="print the counts and files as JSON")


def report(args: argparse.Namespace) -> int:
    """Print the table and write the files; return 1 when the run did not pass, else 0."""
    from harness.report import run_table, write_report
    from harness.report.table import wants_colours
    from harness.results.merge import merge, write_run

    finished = merge(args.runs)
    names = {path.name for path in args.runs}
    merged = args.output and args.output / (names.pop() if len(names) == 1 else MERGED)
    if (
        merged
        and len(args.runs) > 1
        and any(merged.resolve() == run.resolve() for run in args.runs)
    ):
        raise HarnessError(f"{merged} is one of the streams to merge: give -o another folder")
    files = write_report(finished, args.output) if args.output else []
    if merged and len(args.runs) > 1:
        write_run(merged, finished)
        files.append(merged)
    if args.json:
        print(json.dumps(finished.footer.to_json() | {"files": [str(file) for file in files]}))
    else:
        print(run_table(finished, colours=wants_colours(sys.stdout)))
    return 0 if finished.footer.passed else 1


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness gate`."""
    parser.add_argument("base", type=Path, metavar="BASE", help="result file, or artifact")
    parser.add_argument("head", type=Path, metavar="HEAD", help="result file, or artifact")
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="NAME=PERCENT",
        help="how much worse a figure, or a fact such as a size, may be (may be repeated)",
    )
    parser.add_argument("--runtime", help="where two artifacts are executed and timed")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="NAME",
        help="let a change pass that the gate names so, such as `program` (may be repeated)",
    )
    parser.add_argument(
        "--allow-inconclusive",
        action="store_true",
        help="exit with 0, not 4, when a metric is undecided and none is worse",
    )
    parser.add_argument("--all", action="store_true", help="list the equal metrics, too")
    parser.add_argument("--json", action="store_true", help="print every metric as JSON")


def gate(args: argparse.Namespace) -> int:
    """Print a verdict for each metric; return the result's status."""
    from harness.fixtures.project import project

    result = replace(_compare(args), allow_inconclusive=args.allow_inconclusive)
    result = result.waiving(project().waivers, date.today()).accepting(args.accept)
    if args.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print("\n\n".join(_parts(result, args.all)))
    return result.status


def _compare(args: argparse.Namespace) -> GateResult:
    """Compare two artifacts, or two runs; a runtime is for artifacts, margins are for runs."""
    artifacts = [path.suffix == ".pte" or path.is_dir() for path in (args.base, args.head)]
    if any(artifacts) != all(artifacts):
        raise HarnessError(
            f"{args.base} and {args.head}: give two result files (JSON Lines, as a conformance run "
            f"writes them) or two artifacts (a .pte, or an exported folder)"
        )
    if all(artifacts):
        from harness.measure.artifacts import compare_artifacts

        if args.margin:
            raise HarnessError(
                "--margin is for result files; artifacts are timed against a control"
            )
        args.progress(f"comparing and timing {args.base} and {args.head}")
        return compare_artifacts(args.base, args.head, args.runtime)
    from harness.fixtures.project import project
    from harness.measure import compare_runs
    from harness.measure.verdicts import parse_margins
    from harness.results import read_run

    if args.runtime:
        raise HarnessError("--runtime is for artifacts; a result file has its own runtimes")
    args.progress(f"comparing {args.base} and {args.head}")
    margins = {**project().margins, **parse_margins(args.margin)}
    return compare_runs(read_run(args.base), read_run(args.head), margins)


def _parts(result: GateResult, everything: bool) -> Iterator[str]:
    """Yield the table, the notes, how changes are accepted, and the verdict with the counts."""
    shown = [metric for metric in result.metrics if everything or metric.verdict not in QUIET]
    if shown:
        yield _table(shown)
    if result.notes:
        yield "\n".join(_wrap(f"Note: {note}") for note in result.notes)
    if result.unaccepted:
        options = " ".join(f"--accept {shlex.quote(name)}" for name in result.unaccepted)
        yield f"To accept what changed: {options}"
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items() if count)
    yield f"{HEADLINES[result.status]}: {len(result.metrics)} metrics: {counts}"


def _table(metrics: Sequence[Metric]) -> str:
    """Draw metrics under the id of their case, which is too long for a column."""
    from harness.report.table import WIDTH, draw_rows, fit
    from harness.text import clip

    rows = [(m.name, m.base, m.head, m.verdict, m.reason) for m in metrics]
    fitted = fit(rows, COLUMNS, WIDTH - len(INDENT))
    header, rule, *lines = draw_rows([*COLUMNS, "reason"], fitted).splitlines()
    printed = [INDENT + header, INDENT + rule]
    for index, (metric, line) in enumerate(zip(metrics, lines, strict=True)):
        if index == 0 or metric.case != metrics[index - 1].case:
            printed.append(clip(metric.case, WIDTH))
        printed.append(INDENT + line)
    return "\n".join(printed)


def _wrap(text: str) -> str:
    import textwrap

    from harness.report.table import WIDTH
    from harness.text import one_line

    return textwrap.fill(one_line(text), WIDTH, subsequent_indent="    ")
