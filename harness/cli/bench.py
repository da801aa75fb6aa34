"""`harness bench`: the times of an artifact on one runtime, or on several in turn."""

from __future__ import annotations

import argparse
import json
from typing import Any

_MEMORY = (
    ("peak_memory_bytes", "peak MB", 1e6),
    ("memory_before_load_bytes", "of them libraries", 1e6),
)
# A figure's key in the JSON, the title of its column, and the divisor of the column's numbers. The
# baseline's name takes the place of {}.
_COLUMNS = (
    ("load_ms", "load ms", 1),
    ("prefill_ms_per_token", "prefill ms/token", 1),
    ("decode_ms_per_token", "decode ms/token", 1),
    ("decode_tokens_per_second", "tokens/s", 1),
    ("decode_speed_over_{}", "times {}", 1),
    *_MEMORY,
)


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
    from harness.measure import comparison
    from harness.runtimes import BASELINE

    args.progress(f"reading {args.file}")
    figures = comparison.bench(args.file, args.runtime, args.rounds, args.progress)
    if args.json:
        print(json.dumps({"runtimes": figures}, indent=2))
    else:
        _print_figures(figures, BASELINE)
    return 0


def _print_figures(figures: dict[str, dict[str, Any]], baseline: str) -> None:
    from tabulate import tabulate

    first = next(iter(figures.values()))
    peaks = {name: [row[key] / by for key, _, by in _MEMORY] for name, row in figures.items()}
    if "call_ms" in first:
        rows = [
            (name, row["load_ms"], *row["call_ms"].values(), *peaks[name])
            for name, row in figures.items()
        ]
        calls = [f"{method} ms" for method in first["call_ms"]]
        headers = ("runtime", "load ms", *calls, *(title for _, title, _ in _MEMORY))
        print(tabulate(rows, headers, floatfmt=("", ".3f", *(".3f" for _ in calls), ".0f", ".0f")))
        count = first["samples"]["call"]
        print(
            f"\nlow quartiles of {count} loads and calls after a warm-up; outputs were checked; "
            "memory is that of a process that only loads FILE and calls each method once"
        )
        return
    columns = [
        (key.format(baseline.replace(":", "_")), title.format(baseline.replace(":", " ")), by)
        for key, title, by in _COLUMNS
    ]
    rows = [
        (runtime, *(row[key] and row[key] / by for key, _, by in columns))
        for runtime, row in figures.items()
    ]
    headers = ("runtime", *(title for _, title, _ in columns))
    print(tabulate(rows, headers, floatfmt=("", ".1f", ".3f", ".3f", ".1f", ".2f", ".0f", ".0f")))
    samples = next(iter(figures.values()))["samples"]
    print(
        f"\nlow quartiles of {samples['prefill']} loads and prefills and of "
        f"{samples['decode']} decode steps, after a warm-up; every run's logits were checked; "
        "memory is that of a process that only loads FILE and runs it once"
    )
