"""`harness models` and `harness init`: the subjects by name, and the file that declares them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.errors import HarnessError


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness models`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def models(args: argparse.Namespace) -> int:
    """Print the subjects with the options of their exports, and return 0."""
    from tabulate import tabulate

    from harness.fixtures import all_models

    named = all_models().values()
    if args.json:
        rows = [
            {
                "name": model.name,
                "description": model.description,
                "options": None if "artifact" in model.files else model.options.as_dict(),
                "files": {key: str(path) for key, path in model.files.items()},
            }
            for model in named
        ]
        print(json.dumps(rows, indent=2))
        return 0
    table = [
        (
            model.name,
            model.description,
            "-"
            if "artifact" in model.files
            else f"{model.options.max_context_len} / {model.options.input_len}",
        )
        for model in named
    ]
    print(tabulate(table, headers=("model", "what it is", "context / input")))
    return 0


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness init`."""
    from harness.fixtures.project import FILE

    parser.add_argument(
        "-o", "--output", metavar="FILE", default=FILE, help=f"where to write it; default: {FILE}"
    )


def init(args: argparse.Namespace) -> int:
    """Write a commented file of settings, print its name, and return 0; an old one is kept."""
    from harness.files import partial_file
    from harness.fixtures.project import EXAMPLE

    output = Path(args.output)
    if output.exists():
        raise HarnessError(f"{output} exists already; edit it, or remove it first")
    with partial_file(output) as partial:
        partial.write_bytes(EXAMPLE.read_bytes())
    print(output)
    return 0
