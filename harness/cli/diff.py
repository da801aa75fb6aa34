"""`harness diff A B`: what changed between two artifacts. It reads bytes only, without torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
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
    """Print the differences; return 1 when there is one, 0 when nothing counts as different."""
    from harness.artifact import open_artifact
    from harness.diff import diff_artifacts

    args.progress(f"reading {args.a} and {args.b}")
    everything = diff_artifacts(open_artifact(args.a), open_artifact(args.b))
    found = [difference for difference in everything if not difference.is_random]
    ignored = len(everything) - len(found)
    if args.json:
        differences = [difference.to_json() for difference in found]
        content = {"a": args.a, "b": args.b, "ignored": ignored, "differences": differences}
        print(json.dumps(content, indent=2))
        return 1 if found else 0
    if found:
        print("\n".join(map(printable, _lines(args.a, args.b, found, args.all))))
    elif ignored:
        print(
            printable(f"{args.a} and {args.b} are the same but for what exporters draw at random")
        )
    else:
        print(printable(f"{args.a} and {args.b} are the same, byte by byte"))
    if ignored:
        print(f"\nIgnored: {ignored} identifiers, keys or orders that an exporter draws at random")
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
