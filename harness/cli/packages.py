"""`harness extract` and `harness combine`: Core ML packages out of an artifact, and into one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.text import printable

if TYPE_CHECKING:
    from harness.packages.extract import Extracted


def add_extract_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness extract`."""
    from harness.packages.extract import LIST

    parser.add_argument("file", metavar="FILE", help="a .pte, an .mlpackage or an exported folder")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace an earlier extraction")
    parser.add_argument("--json", action="store_true", help=f"print {LIST} instead of a summary")


def extract(args: argparse.Namespace) -> int:
    """Write each package once, print where, and return 0."""
    from harness.artifact import open_artifact
    from harness.packages.extract import LIST, extract_packages

    output = Path(args.output)
    extraction = extract_packages(open_artifact(args.file), output, args.force)
    if args.json:
        print(extraction.to_bytes().decode(), end="")
        return 0
    for package in extraction.packages:
        print(printable(f"{output / package.package}: {package.size:,} bytes, {_uses(package)}"))
    for key, size in extraction.unused.items():
        print(printable(f"not extracted: named data '{key}', {size:,} bytes, no delegate uses it"))
    print(output / LIST)
    return 0


def _uses(package: Extracted) -> str:
    if not package.used_by:
        return f"functions {', '.join(package.functions)}"
    uses = [f"{u.method} delegate {u.delegate} ({u.function})" for u in package.used_by]
    return f"used by {', '.join(uses)}"


def add_combine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness combine`."""
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


def combine(args: argparse.Namespace) -> int:
    """Write one package with the functions of several, print its parts, and return 0."""
    from harness.artifact.package import Package
    from harness.packages import combine_packages, parse_parts

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
