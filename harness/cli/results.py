"""`harness report` and `gate`: draw a result file, compare two of them or two artifacts."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_exactly, print_painted
from harness.errors import HarnessError
from harness.text import one_line

if TYPE_CHECKING:
    from harness.export.exporters import Exporter
    from harness.fixtures.sides import Side
    from harness.fixtures.subjects import Located
    from harness.measure import GateResult, Metric
    from harness.measure.statistics import Goal
    from harness.report.gate import Comparison
    from harness.subject import Subject

# Verdicts that are counted, and listed only when asked for.
QUIET = ("same", "skipped")
MERGED = "merged.jsonl"  # where the merged streams have different names


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN.jsonl",
        help="the result file of a run, its folder, or the files of all its shards, to be merged",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write table, JUnit XML, page, badge here"
    )
    parser.add_argument(
        "--history",
        nargs="+",
        type=Path,
        default=[],
        metavar="OLD.jsonl",
        help="earlier runs, whose figures the page shows beside these (with -o)",
    )
    parser.add_argument("--json", action="store_true", help="print the counts and files as JSON")


def report(args: argparse.Namespace) -> int:
    """Print the table and write the files; return 1 when the run did not pass, else 0."""
    from harness.report import run_table, table_width, wants_colours, write_report
    from harness.results import read_run, stream_of
    from harness.results.merge import merge, write_run

    runs = list(map(stream_of, args.runs))
    finished = merge(runs)
    names = {path.name for path in runs}
    merged = args.output and args.output / (names.pop() if len(names) == 1 else MERGED)
    several = len(runs) > 1
    if merged and several and merged.resolve() in {run.resolve() for run in runs}:
        raise HarnessError(f"{merged} is one of the streams to merge: give -o another folder")
    if args.history and not args.output:
        raise HarnessError("--history needs -o DIR: only the page shows earlier runs")
    earlier = list(map(read_run, args.history))
    files = write_report(finished, args.output, earlier) if args.output else []
    if merged and several:
        write_run(merged, finished)
        files.append(merged)
    if args.json:
        print(json.dumps(finished.footer.to_json() | {"files": [str(file) for file in files]}))
    else:
        colours, width = wants_colours(sys.stdout), table_width(sys.stdout)
        print_exactly(run_table(finished, colours, width) + "\n")
        if shard := finished.header.shard:
            print(f"This is shard {shard['index']} of {shard['count']}, not the whole run")
    return 0 if finished.footer.passed else 1


def percent(text: str) -> float:
    """Return `3%` or `3` as 0.03; raise ValueError for what is not a number."""
    return float(text.removesuffix("%")) / 100


# Of two artifacts: option, unit, type, and what it says. Result files have no such options.
_TIMING: dict[str, tuple[str, Callable[[str], float], str]] = {
    "detect": ("PERCENT", percent, "the smallest slowdown to be found (default: 3; a load 20)"),
    "tolerate": ("PERCENT", percent, "a slowdown that is allowed (default: a third of --detect)"),
    "seconds": ("N", float, "the longest time of timing two artifacts alone (default: 60)"),
}


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness gate`."""
    what = (
        "a result file, an artifact, a subject, or an exporter: executorch@VERSION, "
        "executorch@PATH, coreml, a version, a checkout, a Python"
    )
    for side in ("base", "head"):
        parser.add_argument(side, nargs="?", metavar=side.upper(), help=what)
        parser.add_argument(f"--{side}", dest=f"{side}_option", metavar="NAME", help="the same")
    parser.add_argument(
        "--fixture",
        action="append",
        metavar="NAME",
        help="what two exporters export, NAME, NAME+b4w or matrix (default: tiny; may be repeated)",
    )
    parser.add_argument(
        "--mode",
        action="append",
        choices=("single", "multifunction"),
        help="in which mode they do (default: both)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="write gate.json, gate.md (for a pull request) and index.html to DIR",
    )
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="NAME=PERCENT",
        help="how much worse a figure, or a fact such as a size, may be (may be repeated)",
    )
    parser.add_argument("--runtime", help="where two artifacts are executed and timed")
    for name, (unit, kind, meaning) in _TIMING.items():
        parser.add_argument(f"--{name}", type=kind, metavar=unit, help=meaning)
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="NAME",
        help="let a change pass that the gate names so, such as `program` (may be repeated)",
    )
    parser.add_argument(
        "--tier",
        action="append",
        choices=["structure", "numbers", "time"],
        help="compare only this of two artifacts; structure executes nothing (may be repeated)",
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
    from harness.fixtures.sides import described, side
    from harness.fixtures.subjects import Located
    from harness.report.gate import Comparison, write_gate
    from harness.results import Header
    from harness.text import require_outside

    start = time.monotonic()
    _goal(args)  # wrong numbers are refused before anything is exported
    words = [_side_word(args, name) for name in ("base", "head")]
    header = Header.here(_gate_options(args), executes=False)
    base, head = (side(word, args.progress) for word in words)
    if args.results is not None:
        require_outside(args.results, *(s.path for s in (base, head) if isinstance(s, Located)))
    result = replace(_compare(args, base, head), allow_inconclusive=args.allow_inconclusive)
    result = result.waiving(project().waivers, date.today()).accepting(args.accept)
    comparison = Comparison(
        described(words[0], base),
        described(words[1], head),
        header,
        round(time.monotonic() - start, 3),
        result,
        partial(_repeat, args, words),
    )
    files = write_gate(comparison, args.results) if args.results else []
    if args.json:
        print(json.dumps(comparison.to_json(), indent=2))
    else:
        print_painted("\n\n".join(_parts(comparison, args.all)) + "\n")
        if files:
            print(f"results: {args.results}")
    return comparison.result.status


def _side_word(args: argparse.Namespace, name: str) -> str:
    given = [word for word in (getattr(args, name), getattr(args, f"{name}_option")) if word]
    if len(given) != 1:
        problem = "is given twice" if given else "is missing"
        raise HarnessError(
            f"{name.upper()} {problem}: harness gate BASE HEAD, or --base and --head"
        )
    return str(given[0])


def _gate_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, apart from the sides and from the output."""
    names = ["fixture", "mode", "runtime", "tier", "margin", "accept", "allow_inconclusive"]
    names += _TIMING
    return {name: getattr(args, name) or "default" for name in names}


def _repeat(args: argparse.Namespace, words: Sequence[str], metric: Metric) -> str:
    """Return the command that compares again what a metric is of; only its model of exporters'."""
    given = {name: getattr(args, name) for name in ("tier", "runtime", "margin", "accept")}
    model, slash, mode = metric.case.partition(": ")[0].partition("/")
    if slash and mode in ("single", "multifunction"):
        given |= {"fixture": model, "mode": mode}
    for name, (_, kind, _) in _TIMING.items():
        value = getattr(args, name)
        if value is not None:
            given[name] = f"{100 * value:.12g}%" if kind is percent else f"{value:.12g}"
    command = ["harness", "gate", *words]
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            command += [f"--{name}", value] if value else []
    return shlex.join([*command, *(["--allow-inconclusive"] if args.allow_inconclusive else [])])


def _compare(args: argparse.Namespace, base: Side, head: Side) -> GateResult:
    """Compare two runs, two artifacts, or what two exporters make.

    Margins are for runs, a runtime for artifacts, fixtures and modes for exporters. Raises
    HarnessError for any other, and for sides of two kinds.
    """
    from harness.export.exporters import Exporter
    from harness.fixtures import sides
    from harness.fixtures.subjects import Located
    from harness.measure.verdicts import check_acceptable
    from harness.runtimes import default_runtime, usable_runtimes

    match base, head:
        case Path(), Path():
            _refuse(args, "result files", "runtime", "tier", "fixture", "mode", *_TIMING)
            return _compare_runs(args, base, head)
        case Located(), Located():
            _refuse(args, "artifacts, which are timed against a control", "margin")
            _refuse(args, "artifacts", "fixture", "mode")
            check_acceptable(args.accept)
            exporters = base.exporter, head.exporter
            return _compare_exports(args, exporters, sides.subject_of(base), _opened(head))
        case Exporter(), Exporter():
            _refuse(args, "exporters, whose artifacts are timed against a control", "margin")
            check_acceptable(args.accept)
            usable_runtimes([args.runtime or default_runtime()])
            modes = args.mode or sides.MODES
            made = sides.pairs(base, head, args.fixture or ["tiny"], modes, args.progress)
            compare = partial(_compare_exports, args, (base, head))
            return sides.compare_pairs(made, compare, args.progress)
    raise HarnessError(
        f"BASE is {sides.kind_of(base)}, HEAD is {sides.kind_of(head)}: give two result files, two "
        "artifacts or two exporters; EXPORTER:NAME/MODE is what an exporter makes of a model"
    )


def _refuse(args: argparse.Namespace, what: str, *names: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, []):
            raise HarnessError(f"--{name} is not for two {what}")


def _opened(head: Located) -> Subject | Path:
    """Return HEAD as a subject, or the path of one that is too damaged to be opened."""
    from harness.errors import ArtifactError
    from harness.fixtures.sides import subject_of

    try:
        return subject_of(head)
    except ArtifactError:
        return Path(head.path)


def _compare_artifacts(args: argparse.Namespace, base: Subject, head: Subject | Path) -> GateResult:
    from harness.measure.artifacts import compare_artifacts
    from harness.measure.verdicts import TIERS

    tiers = args.tier or TIERS
    return compare_artifacts(base, head, args.runtime, tiers, args.progress, _goal(args))


def _goal(args: argparse.Namespace) -> Goal:
    """Return what timing must find; raise HarnessError for numbers that do not fit."""
    from harness.measure.statistics import Goal

    given = {name: getattr(args, name) for name in _TIMING if getattr(args, name) is not None}
    return Goal(**{"tolerate": given.get("detect", Goal.detect) / 3} | given)


def _compare_exports(
    args: argparse.Namespace,
    exporters: tuple[Exporter | None, Exporter | None],
    base: Subject,
    head: Subject | Path,
) -> GateResult:
    """Compare two artifacts, and without --runtime the own runtimes of their exporters."""
    from harness.fixtures.sides import own_runtimes, time_own_runtimes

    result = _compare_artifacts(args, base, head)
    timed = not args.runtime and not isinstance(head, Path) and "time" in (args.tier or ["time"])
    runtimes = own_runtimes(*exporters) if timed else None
    if runtimes is None or isinstance(head, Path):
        return result
    own = time_own_runtimes(base, head, runtimes, _goal(args), args.progress)
    return replace(result, metrics=result.metrics + own.metrics, notes=result.notes + own.notes)


def _compare_runs(args: argparse.Namespace, base: Path, head: Path) -> GateResult:
    from harness.fixtures.project import project
    from harness.measure import compare_runs
    from harness.measure.verdicts import check_acceptable, parse_margins, plain_name
    from harness.results import read_run

    args.progress(f"comparing {base} and {head}")
    margins = parse_margins(args.margin)
    result = compare_runs(read_run(base), read_run(head), margins, project().margins)
    facts = {plain_name(metric.name) for metric in result.metrics if metric.kind == "fact"}
    check_acceptable(args.accept, sorted(facts))
    return result


def _parts(comparison: Comparison, everything: bool) -> Iterator[str]:
    """Yield the table, the notes, how changes are accepted, and the verdict with the counts."""
    from harness.measure import TWO_KINDS
    from harness.report import table_width
    from harness.report.gate import acceptance, list_metrics

    result, width = comparison.result, table_width(sys.stdout)
    shown = [metric for metric in result.metrics if everything or metric.verdict not in QUIET]
    fill = TextWrapper(width, subsequent_indent="    ", break_on_hyphens=False).fill
    notes = [fill(one_line(f"Note: {note}")) for note in result.notes]
    first = [note for note in notes if TWO_KINDS in note]
    yield from first
    if shown:
        yield list_metrics(shown, everything, width)
    if later := [note for note in notes if note not in first]:
        yield "\n".join(later)
    if hint := acceptance(result):
        yield hint
    yield f"{comparison.verdict}: {comparison.summary}"
