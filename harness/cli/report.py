"""`harness report`: a result file drawn as a table, JUnit XML and an HTML page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `harness report`."""
    parser.add_argument("run", type=Path, metavar="RUN.jsonl", help="the result file of a run")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="write table.txt, junit.xml and index.html here; without it, only print",
    )
    parser.add_argument("--json", action="store_true", help="print the counts and files as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the table and write the files; 1 when the run did not pass."""
    from harness.report import run_table, write_report
    from harness.report.table import wants_colours
    from harness.results import read_run

    finished = read_run(args.run)
    files = write_report(finished, args.output) if args.output else []
    if args.json:
        print(json.dumps(finished.footer.to_json() | {"files": [str(file) for file in files]}))
    else:
        print(run_table(finished, colours=wants_colours(sys.stdout)))
    return 0 if finished.footer.passed else 1
