"""`harness extract`, `combine` and `diff`: Core ML packages out of an artifact, into one, compared.

They read bytes only, without torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_painted
from harness.text import clip, printable

if TYPE_CHECKING:
    from harness.diff import Difference
    from harness.packages.extract import Extracted

_MAX_SHOWN = 8  # differences of one kind in one place: the first few tell the pattern
_WIDTH = 400  # characters of one side


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


def add_diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness diff`."""
    parser.add_argument("a", metavar="A", help="a .pte, an exported folder or an .mlpackage")
    parser.add_argument("b", metavar="B", help="another; a program is compared with programs")
    parser.add_argument("--json", action="store_true", help="print all differences as JSON")
    parser.add_argument("--all", action="store_true", help="list every difference, uncut")


def diff(args: argparse.Namespace) -> int:
    """Print the differences; return 1 when there is one, 0 when nothing counts as different."""
    from harness.artifact import open_artifact
    from harness.diff import diff_artifacts

    args.progress(f"reading {args.a} and {args.b}")
    everything = diff_artifacts(open_artifact(args.a), open_artifact(args.b))
    found = [difference for difference in everything if not difference.is_incidental]
    ignored = len(everything) - len(found)
    if args.json:
        differences = [difference.to_json() for difference in found]
        content = {"a": args.a, "b": args.b, "ignored": ignored, "differences": differences}
        print(json.dumps(content, indent=2))
        return 1 if found else 0
    if found:
        lines = _lines(args.a, args.b, found, args.all)
        print_painted("".join(f"{printable(line)}\n" for line in lines))
    elif ignored:
        print(
            printable(f"{args.a} and {args.b} are the same but for what exporters draw at random")
        )
    else:
        print(printable(f"{args.a} and {args.b} are the same, byte by byte"))
    if ignored:
        print(f"\nIgnored: {ignored} differences in random identifiers, dates or debug data")
    return 1 if found else 0


def _lines(a: str, b: str, found: list[Difference], everything: bool) -> Iterator[str]:
    yield f"--- {a}"
    yield f"+++ {b}"
    for where, here in groupby(found, key=lambda difference: difference.where):
        if where:
            yield ""
            yield where
        for kind, group in groupby(here, key=lambda difference: difference.kind):
            of_kind = list(group)
            shown = of_kind if everything else of_kind[:_MAX_SHOWN]
            for difference in shown:
                yield from _difference_lines(difference, everything)
            if len(of_kind) > len(shown):
                yield f"  {kind}: {len(of_kind) - len(shown)} more (--all)"


def _difference_lines(difference: Difference, everything: bool) -> Iterator[str]:
    a, b = (_side(value, everything) for value in (difference.a, difference.b))
    label = f"  {difference.kind} {difference.what}"
    if len(label) + len(a) + len(b) < 90:
        yield f"{label}: {a} -> {b}"
    else:
        yield f"{label}:"
        yield f"    - {a}"
        yield f"    + {b}"


def _side(value: Any, everything: bool) -> str:
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if everything else clip(text, _WIDTH)
