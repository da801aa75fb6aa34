"""`harness bench`: the times of an artifact on one runtime, or on several in turn."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.results import Header

_MEMORY = {"peak memory": "peak_memory_bytes", "before load": "memory_before_load_bytes"}
_HEADERS = ("runtime", "test", "median", "middle half", "unit", "tokens/s")
_ALIGNED = ("left", "left", "right", "right", "left", "right")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file", metavar="FILE", help="a .pte, an exported folder or an .mlpackage, of any model"
    )
    parser.add_argument(
        "--runtime",
        action="append",
        help="where to execute it (default: this machine's, beside eager PyTorch in fp32); "
        "several are timed in turn",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the figures and return 0; raise HarnessError when a run gives wrong logits."""
    args.progress("importing torch")
    from harness.measure import comparison
    from harness.results import Header

    args.progress(f"reading {args.file}")
    figures = comparison.bench(args.file, args.runtime, args.rounds, args.progress)
    header = Header.here({})
    if args.json:
        where = {"versions": dict(header.versions), "machine": dict(header.machine)}
        print(json.dumps({"runtimes": figures, **where}, indent=2))
    else:
        print(f"{table(figures)}\n\n{_legend(figures, header)}")
    return 0


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows of each runtime as llama-bench names them; the figures are the JSON's."""
    from tabulate import tabulate

    rows: list[tuple[str, ...]] = []
    for runtime, found in figures.items():
        name = runtime
        for row in found["tests"]:
            half = " to ".join(map(_number, row["quartiles"]))
            speed = f"{row['tokens_per_second']:,.1f}" if "tokens_per_second" in row else ""
            rows.append((name, row["test"], _number(row["median"]), half, row["unit"], speed))
            name = ""
        memory = ((test, f"{found[key] / 1e6:,.0f}") for test, key in _MEMORY.items())
        rows += [("", test, text, "", "MB", "") for test, text in memory]
    return tabulate(rows, _HEADERS, disable_numparse=True, colalign=_ALIGNED)


def _number(value: float) -> str:
    """Return a time with four digits that mean something, and no power of ten."""
    return f"{value:,.{max(0, 3 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _legend(figures: Mapping[str, Mapping[str, Any]], header: Header) -> str:
    """Return what the rows mean, how the runtimes compare, and the machine with its versions."""
    from harness.report import table_width
    from harness.results.machine import machine_line
    from harness.runtimes import BASELINE

    first = next(iter(figures.values()))
    names = [row["test"] for row in first["tests"]]
    counts = ", ".join(f"{row['samples']} of {row['test']}" for row in first["tests"])
    terms = [] if "call_ms" in first else [f"{names[1]}: prefill of so many tokens"]
    terms += (
        [] if "call_ms" in first else [f"{names[2]}: so many decoded after a depth of d tokens"]
    )
    terms += ["before load: Python and libraries"]
    speed = f"decode_speed_over_{BASELINE.replace(':', '_')}"
    versions = [f"{name} {text}" for name, text in header.versions.items() if text[:1].isdigit()]
    paragraphs = [
        "; ".join(terms),
        f"samples after a warm-up: {counts}; the results of every run were checked; memory is that "
        "of a process that only loads FILE and runs it once",
        *(
            f"{name} decodes {row[speed]:.2f} times as fast as {BASELINE} (low quartiles)"
            for name, row in figures.items()
            if name != BASELINE and row.get(speed)
        ),
        f"machine: {machine_line(header.machine)}",
        f"versions: {', '.join(versions)}",
    ]
    width = table_width(sys.stdout)
    return "\n".join(textwrap.fill(text, width, subsequent_indent="  ") for text in paragraphs)
