"""`harness extract FILE -o DIR`: the Core ML packages inside an artifact, each once."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.artifact import open_artifact
from harness.packages.extract import LIST, Extracted, extract_packages
from harness.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .pte, an .mlpackage or an exported folder")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace an earlier extraction")
    parser.add_argument("--json", action="store_true", help=f"print {LIST} instead of a summary")


def run(args: argparse.Namespace) -> int:
    """Extract; prints what stands where. Returns 0, or raises HarnessError."""
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
