"""`harness models`: the named fixtures, and how each is exported unless asked otherwise."""

from __future__ import annotations

import argparse
import json

from tabulate import tabulate

from fixtures.models import all_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the models; returns 0."""
    models = all_models().values()
    rows = [
        {"name": m.name, "description": m.description, "options": m.options.as_dict()}
        for m in models
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    lengths = [f"{m.options.max_context_len} / {m.options.input_len}" for m in models]
    table = [
        (row["name"], row["description"], length) for row, length in zip(rows, lengths, strict=True)
    ]
    print(tabulate(table, headers=("model", "what it is", "context / input")))
    return 0
