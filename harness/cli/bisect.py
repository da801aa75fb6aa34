"""`harness bisect FILE`: the first ML Program operation that leaves its reference, and ranges.

There are two references, on the same prompt. The model's graph in fp64 shows the mistakes of the
program: a weight, a constant, a cache, an operation. The executor's own double policy shows the
errors of rounding in a correct program. `--ranges` shows instead how near each operation's values
come to the limits of fp16.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.check import add_checkpoint_arguments
from harness.cli.output import print_painted
from harness.cli.recording import add_results_arguments, artifact_name, recording
from harness.errors import HarnessError
from harness.text import ELLIPSIS, counted, printable, terminal_width

if TYPE_CHECKING:
    from harness.divergence import Bisection
    from harness.divergence.culprit import Divergence
    from harness.divergence.model import ModelReport
    from harness.mil.ranges import Range
    from harness.subject import Subject

STREAM = "bisect.jsonl"
_HEADERS = ("operation", "largest", "to overflow", "to the square's", "subnormal", "inf", "NaN")
_FIGURE, _MIN_PLACE = 9, 15  # columns of a figure, and of a place at least
_SHOWN = 12  # rows of a table on a terminal; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .pte, an exported folder or an .mlpackage")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--reference",
        metavar="MODULE:FUNCTION",
        help="the eager PyTorch module of a model of any kind, as for `harness check`; this "
        "executes your Python code",
    )
    parser.add_argument(
        "--inputs",
        type=Path,
        metavar="TENSORS",
        help="call it once with these, tensors by the inputs' names in a file of safetensors or "
        "torch.save, instead of feeding a prompt; without them, another artifact than a language "
        "model is called with seeded ones",
    )
    parser.add_argument(
        "--policy",
        choices=("strict", "widen"),
        default="strict",
        help="the policy to compare with the double policy (default: strict, which rounds to fp16)",
    )
    parser.add_argument("--method", help="judge the calls of this method only")
    parser.add_argument("--function", help="judge this ML Program function only")
    parser.add_argument(
        "--ranges",
        action="store_true",
        help="show how near each operation's values come to overflow and to the subnormals",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_results_arguments(parser, STREAM)


def run(args: argparse.Namespace) -> int:
    """Print the findings; return 1 when an operation leaves its reference, else 0.

    With `--ranges`, return 1 when an operation overflows, or takes logarithms of what fp16 rounds
    to 0.
    """
    from harness.subject import Subject

    if args.ranges and args.results is not None:
        raise HarnessError("--results records divergences, not --ranges: leave one of them out")
    subject = Subject(args.file, args.checkpoint, args.params, reference=args.reference)
    given = None if args.inputs is None else _tensors(args.inputs)
    if args.checkpoint is not None and given is not None:
        raise HarnessError(
            f"{args.file}: a checkpoint is compared with a language model that is fed a prompt: "
            "leave out --checkpoint, or --inputs"
        )
    return _ranges(args, subject, given) if args.ranges else _bisect(args, subject, given)


def _tensors(path: Path) -> dict[Any, Any]:
    from harness.models.checkpoint import read_tensors

    return read_tensors(path)


def _bisect(args: argparse.Namespace, subject: Subject, given: Mapping[str, Any] | None) -> int:
    from harness.divergence import Part, bisect
    from harness.results import NOT_APPLICABLE

    with recording(args, _options(args), STREAM) as record:
        args.progress(f"executing {args.file} beside its reference")
        found = bisect(subject, args.policy, Part(args.method, args.function), given)
        mode = subject.mode if subject.is_language_model else NOT_APPLICABLE
        for case in found.cases(artifact_name(args), mode, args.policy):
            record(case)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_painted("".join(f"{printable(line)}\n" for line in _lines(found, args.policy)))
        if args.results is not None:
            print(f"results: {args.results}")
    return 0 if found.passes else 1


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the cases; the gate compares runs of equal options."""
    sources = [name for name in ("checkpoint", "reference") if getattr(args, name)]
    return {
        "policy": args.policy,
        "compared with": sources or "its own weights",
        **{name: getattr(args, name) for name in ("method", "function") if getattr(args, name)},
        **({"inputs": True} if args.inputs is not None else {}),
    }


def _lines(found: Bisection, policy: str) -> list[str]:
    model, precision = found.model, found.precision
    lines = [] if model is None else _model_lines(model, found.weights)
    lines += [
        f"{policy} against double: {counted(precision.judged, 'operation')} in "
        f"{counted(precision.calls, 'call')}; the last call's result differs by "
        f"{precision.accumulated:.2g} of its root mean square",
    ]
    lines += [precision.nan] if precision.nan else []
    if precision.found:
        others = len(precision.found) - 1
        lines += ["", "the first operation that leaves it:", *_described(precision.found[0])]
        lines += [f"  and {others} more after it (--json)"] if others else []
    return [*lines, "", _verdict(found, policy)]


def _verdict(found: Bisection, policy: str) -> str:
    if found.passes:
        own = found.model is not None and found.weights == "artifact"
        unjudged = "; weights were not judged: give --checkpoint" if own else ""
        return f"PASSED: no operation is at fault{unjudged}"
    faults = []
    if found.model is not None and found.model.first is not None:
        faults.append("an operation leaves the model's graph")
    elif found.model is not None and found.model.output:
        faults.append("an output is not the model's")
    if found.precision.found:
        operations = counted(len(found.precision.found), "operation")
        faults.append(f"under {policy}, {operations} exceeded the allowed error of rounding")
    if found.precision.nan:
        faults.append("an output is NaN")
    return f"FAILED: {'; '.join(faults)}"


def _model_lines(model: ModelReport, weights: str) -> list[str]:
    matched = f"{counted(model.matched, 'operation')} in {counted(model.calls, 'call')}"
    lines = [
        f"the model's graph in fp64: {matched} give its values, {model.excused:,} more are steps "
        "between two of its values"
        + (" (weights are the artifact's own: no checkpoint)" if weights == "artifact" else "")
    ]
    if model.first is not None:
        lines += ["", "the first operation that leaves it:", *_described(model.first)]
    elif model.output:
        lines += ["", model.output]
    return [*lines, ""]


def _described(found: Divergence) -> list[str]:
    return [f"  {line}" for line in str(found).splitlines()]


def _ranges(args: argparse.Namespace, subject: Subject, given: Mapping[str, Any] | None) -> int:
    from harness.divergence import Part, measured_ranges, range_json

    args.progress(f"executing {args.file} under widen")
    rows = measured_ranges(subject, Part(args.method, args.function), given)
    if args.json:
        print(json.dumps([range_json(row) for row in rows], indent=2))
    else:
        print(_table(rows))
    return 1 if any(row.margin < 1 or row.vanished for row in rows) else 0


def _table(rows: list[Range]) -> str:
    from tabulate import tabulate

    from harness.report import GAP, HEADER_PADDING

    floats = [row for row in rows if not row.quantized]
    small = sorted(floats, key=lambda row: -row.subnormal_fraction)[:_SHOWN]
    shown = [*floats[:_SHOWN], *small]
    kept = [name for name in _HEADERS if name not in ("inf", "NaN") or _has(shown, name)]
    room = None  # for the first column: a pipe gets all of it
    if sys.stdout.isatty():
        others = sum(max(len(name) + HEADER_PADDING, _FIGURE) + GAP for name in kept[1:]) + GAP
        room = max(_MIN_PLACE, terminal_width(sys.stdout) - others)

    def table(some: list[Range]) -> str:
        cells = [[_row(row, room)[name] for name in kept] for row in some]
        return tabulate(cells, kept, disable_numparse=True)

    clipped = sorted((row for row in rows if row.quantized), key=lambda row: -row.clipped)[:_SHOWN]
    quantized = [(_place(row), f"{row.clipped_fraction:.2%}", row.quantized) for row in clipped]
    ends = ["", tabulate(quantized, ("quantized activations", "clipped", "values"))]
    lost = [
        f"{_place(row)}: {row.vanished:,} of {row.nonzero:,} values are logarithms of what fp16 "
        "rounds to 0"
        for row in sorted(rows, key=lambda row: -row.vanished)
        if row.vanished
    ]
    more = [f"and {len(lost) - _SHOWN} more (--json)"] if len(lost) > _SHOWN else []
    return "\n".join(
        [
            f"nearest to overflow, of {len(floats)} operations; 12x: twelve times larger would fit",
            table(floats[:_SHOWN]),
            "",
            "most subnormal values (the part of those that are not zero)",
            table(small),
            *(ends if quantized else ()),
            *(["", *lost[:_SHOWN], *more] if lost else ()),
        ]
    )


def _place(row: Range) -> str:
    return row.where.partition("function ")[2] or row.where


def _has(rows: list[Range], name: str) -> bool:
    return any(row.infinite if name == "inf" else row.nan for row in rows)


def _row(row: Range, room: int | None) -> dict[str, Any]:
    """Return the cells of an operation by the headers; the end of a place has its name."""
    square, place = row.square_margin, _place(row)
    cells = (
        place if room is None or len(place) <= room else ELLIPSIS + place[1 - room :],
        f"{row.peak:.4g}",
        f"{row.overflow_margin:.3g}x",
        "" if square is None else f"{square:.3g}x",
        f"{row.subnormal_fraction:.2%}",
        row.infinite or "",
        row.nan or "",
    )
    return dict(zip(_HEADERS, cells, strict=True))
