"""How findings look on the terminal, and `harness findings`, which explains their codes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.checks.findings import Row
    from harness.results import Case

_INDENT = " " * 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("codes", nargs="*", metavar="CODE", help="only these, such as M02")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the rows as a JSON array")
    form.add_argument("--markdown", action="store_true", help="print docs/findings.md")


def run(args: argparse.Namespace) -> int:
    """Print rows of the table of findings; returns 0."""
    from harness.checks.findings import markdown, rows

    if unknown := [code for code in args.codes if code not in rows()]:
        raise HarnessError(f"no finding has the code '{unknown[0]}'; `harness findings` lists all")
    chosen = [row for code, row in rows().items() if not args.codes or code in args.codes]
    if args.json:
        print(json.dumps([asdict(row) for row in chosen], indent=2))
    elif args.markdown:
        print(markdown(), end="")
    else:
        print("\n".join(line for row in chosen for line in _explained(row, bool(args.codes))))
    return 0


def _explained(row: Row, in_full: bool) -> Iterator[str]:
    severity = ", a warning" if row.severity == "warning" else ""
    yield f"{row.code}  {row.sentence}"
    if in_full:
        yield f"{_INDENT}found by  {row.check}{severity}"
        yield f"{_INDENT}remedy    {row.remedy}"
        yield f"{_INDENT}source    {row.source}{f'; {row.versions}' if row.versions else ''}"


def finding_lines(cases: Iterable[Case], warnings: bool) -> Iterator[str]:
    """Yield the lines of all findings of cases, or of all warnings, each with its remedy."""
    for case in cases:
        found = [one for one in case.findings if one.warning == warnings]
        if case.outcome in ("skip", "known") or not (found or not (warnings or case.passes)):
            continue
        where = "" if case.runtime == "-" else f" on {case.runtime}"
        if not found:  # a bug of the harness, or a known defect that no longer shows
            yield f"{case.outcome:5} {case.check}{where}: {case.reason}"
        for one in found:
            outcome = "warn" if warnings else case.outcome
            parts = one.parts()
            yield f"{outcome:5} {case.check}{where}: {parts.pop(one.code, one.sentence)}"
            yield from (f"{_INDENT}{name:8}  {text}" for name, text in parts.items())


def codes_of(cases: Iterable[Case]) -> list[str]:
    """Return the codes that make cases fail, each once."""
    bad = [case for case in cases if not case.passes]
    codes = (one.code for case in bad for one in case.findings if not one.warning)
    return list(dict.fromkeys(filter(None, codes)))
