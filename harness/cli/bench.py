"""`harness bench FILE`: load, prefill, decode and memory, on one runtime or several in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from harness.errors import HarnessError, NotInstalledError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .pte of a Core ML language model")
    parser.add_argument(
        "--runtime",
        action="append",
        help="where to execute it (default: this machine's, beside eager PyTorch in fp32); "
        "several are timed in turn",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the figures; a run with wrong logits is an error, not a result."""
    from harness.checks import Subject
    from harness.measure.timing import Stopwatch
    from harness.runtimes import default_runtime, get_runtime

    if args.rounds < 1:
        raise HarnessError(f"--rounds must be at least 1, not {args.rounds}")
    runtimes = [get_runtime(n).name for n in args.runtime or (default_runtime(), "eager:fp32")]
    runtimes = list(dict.fromkeys(runtimes))
    for name in runtimes:
        if reason := get_runtime(name).unavailable():
            raise NotInstalledError(f"runtime {name} cannot be used here: {reason}")
    subject = Subject(args.file)
    loads = {name: _load(subject, name) for name in runtimes}
    rounds = Stopwatch(subject).rounds(runtimes, args.rounds)
    figures = {name: _figures(loads[name], rounds[name]) for name in runtimes}
    if args.json:
        print(json.dumps({"peak_memory_bytes": _peak_memory(), "runtimes": figures}, indent=2))
    else:
        _print(figures)
    return 0


def _load(subject: Any, runtime: str) -> float:
    start = time.perf_counter()
    subject.session(runtime)
    return (time.perf_counter() - start) * 1000


def _figures(load: float, rounds: list[Any]) -> dict[str, Any]:
    decode = [step for timed in rounds for step in timed.decode]
    prefill = [timed.prefill for timed in rounds]
    return {
        "load_ms": load,
        "prefill_ms_per_token": statistics.median(prefill),
        "decode_ms_per_token": statistics.median(decode),
        "samples": {"prefill": len(prefill), "decode": len(decode)},
    }


def _print(figures: dict[str, dict[str, Any]]) -> None:
    from tabulate import tabulate

    names = ("load_ms", "prefill_ms_per_token", "decode_ms_per_token")
    rows = [(runtime, *(row[name] for name in names)) for runtime, row in figures.items()]
    headers = ("runtime", "load ms", "prefill ms/token", "decode ms/token")
    print(tabulate(rows, headers, floatfmt=".3f"))
    samples = next(iter(figures.values()))["samples"]
    print(
        f"\nmedians of {samples['prefill']} prefills and {samples['decode']} decode steps; every "
        f"run's logits were checked; peak memory {_peak_memory() / 1e6:.0f} MB, oracle included"
    )


def _peak_memory() -> int:
    """Return the process's largest resident set, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
