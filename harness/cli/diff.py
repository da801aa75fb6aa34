"""`harness diff A B`: what changed between two artifacts. It reads bytes only, without torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness.text import clip, printable

if TYPE_CHECKING:
    from harness.diff import Difference

_MAX_SHOWN = 8  # differences of one kind in one place: the first few tell the pattern
_WIDTH = 400  # characters of one side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("a", metavar="A", help="a .pte, an exported folder or an .mlpackage")
    parser.add_argument("b", metavar="B", help="another; a program is compared with programs")
    parser.add_argument("--json", action="store_true", help="print all differences as JSON")
    parser.add_argument("--all", action="store_true", help="list every difference, uncut")


def run(args: argparse.Namespace) -> int:
    """Print the differences; return 1 when there is one, 0 when every byte is equal."""
    from harness.artifact import open_artifact
    from harness.diff import diff_artifacts

    args.progress(f"reading {args.a} and {args.b}")
    found = diff_artifacts(open_artifact(args.a), open_artifact(args.b))
    if args.json:
        print(
            json.dumps({"a": args.a, "b": args.b, "differences": [*map(asdict, found)]}, indent=2)
        )
    elif not found:
        print(printable(f"{args.a} and {args.b} are the same, byte by byte"))
    else:
        print("\n".join(map(printable, _lines(args.a, args.b, found, args.all))))
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
