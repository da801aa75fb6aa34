"""`harness combine`: functions of Core ML packages in one package, weights stored once."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from harness.artifact.package import Package
from harness.packages.combine import combine_packages, parse_parts
from harness.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "parts",
        metavar="PACKAGE[:NAME]",
        nargs="+",
        help="an .mlpackage: all its functions; with :NAME, one, by that name or renamed to it; "
        "with :SOURCE=NAME, the function SOURCE, renamed",
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the .mlpackage")
    parser.add_argument("--default", metavar="NAME", help="the default function (the first)")
    parser.add_argument("--force", action="store_true", help="replace an .mlpackage that is there")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> int:
    """Combine; prints what was made. Returns 0, or raises HarnessError."""
    parts, output = parse_parts(args.parts), Path(args.output)
    combined = combine_packages(parts, output, args.default, args.force)
    size = Package.from_folder(output).size
    if args.json:
        print(json.dumps({"path": str(output), "size": size, **asdict(combined)}, indent=2))
        return 0
    print(printable(f"{output}: {size:,} bytes, default function '{combined.default_function}'"))
    for part in parts:
        print(printable(f"  {part.target}: from {part}"))
    print(f"  weights: {combined.stored:,} bytes stored for {combined.used:,} used")
    if combined.left_out:
        names = ", ".join(combined.left_out)
        print(printable(f"  left out, because the packages disagree: {names}"))
    return 0
