"""What `harness check` records and shows of its cases; `harness findings` explains their codes."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness.cli.output import print_painted
from harness.errors import HarnessError
from harness.text import did_you_mean

if TYPE_CHECKING:
    from harness.checks.findings import Row
    from harness.fixtures.subjects import Located
    from harness.results import Case, Header

STREAM = "check.jsonl"
# The options that name what an artifact is judged with.
_SOURCES = ("checkpoint", "params", "reference", "golden", "inputs", "seed", "name", "results")
_INDENT = " " * 6
_KNOWN = Path(harness.__file__).with_name("suites") / "known.toml"
_FORBIDDEN = re.compile(r"[\[\],:\x00-\x1f\x7f]")  # what separates the parts of a case's name


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the cases go, and the name of the artifact in them."""
    add_results_arguments(parser, STREAM)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as a stream, as in DIR: JSON Lines with a header and a footer",
    )


def add_results_arguments(parser: argparse.ArgumentParser, stream: str) -> None:
    """Declare the folder of the results, whose stream has a name, and the artifact's name there."""
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help=f"write the results to DIR: {stream}, a table, JUnit XML and an HTML page",
    )
    parser.add_argument(
        "--name",
        metavar="[EXPORTER:]NAME",
        help="the artifact's name in the results (default: the subject's, or FILE's)",
    )


def artifact_name(args: argparse.Namespace) -> str:
    """Return the artifact's name in the cases: a given one, the subject's, or the file's.

    Raises HarnessError when the given one cannot be part of a case's name.
    """
    located: Located | None = args.located.get("file")
    if args.name is not None:
        if not args.name or _FORBIDDEN.search(args.name.replace(":", "")) or len(args.name) > 200:
            raise HarnessError("--name must have 1 to 200 characters, and no brackets and commas")
        return str(args.name)
    return located.name if located else _FORBIDDEN.sub("_", Path(args.file).resolve().name)[-200:]


@contextmanager
def recording(
    args: argparse.Namespace, options: Mapping[str, Any], stream: str = STREAM, echoes: bool = False
) -> Iterator[Callable[[Case], None]]:
    """Yield a function that records a case, and `echoes` it; the end of the block ends the run.

    An exception, such as an interrupt, leaves a stream without a footer, and no drawings. Raises
    HarnessError at once when the folder cannot be written.
    """
    from harness.report import write_report
    from harness.results import Stream, Writer, read_run
    from harness.text import require_outside

    if args.results is not None:
        require_outside(args.results, Path(args.file))
    echo = partial(print, flush=True) if echoes else None
    if args.results is not None:
        with Writer(args.results / stream, _header(args, options), echo) as writer:
            yield writer.add
        write_report(read_run(writer.path), args.results)
    elif echo is not None:
        records = Stream(_header(args, options), echo)
        yield records.add
        records.finish()
    else:
        yield lambda case: None


def judge_of_known(args: argparse.Namespace) -> Callable[[Case], Case]:
    """Return a function that judges a case by the known defects, the suites' and the project's.

    The version of the exporter is known for a subject, and when `--name` states it.
    """
    from harness.checks.findings import read_known_defects
    from harness.fixtures.project import project
    from harness.results.known import judge_against_known, parse_versions

    known = [row for path in (_KNOWN, *project().known) for row in read_known_defects(path)]
    exporter = artifact_name(args).rpartition(":")[0]
    stated = {exporter: exporter.partition("@")[2]}  # executorch@1.5.1:my-model
    made_by = {name: versions.get("executorch") for name, versions in _exporters(args).items()}
    versions = parse_versions(stated | made_by)
    return lambda case: judge_against_known(case, known, versions)


def _header(args: argparse.Namespace, options: Mapping[str, Any]) -> Header:
    from harness.results import Header
    from harness.text import content_digest

    args.progress("hashing the artifact")
    sha256, size = content_digest(Path(args.file))
    artifact: dict[str, str | int] = {"name": artifact_name(args), "sha256": sha256, "bytes": size}
    here = Header.here(options, _exporters(args), artifact)
    return replace(here, typed=typed_words(args, *_SOURCES))


def typed_words(args: argparse.Namespace, *names: str) -> list[str]:
    """Return the words that name the artifact, and those options that the user gave, as typed."""
    located: Located | None = args.located.get("file")
    words = [str(args.typed["file"])]
    for name in names:
        value = getattr(args, name, None)
        if value and not (located and located.files.get(name) == value):
            words += [f"--{name}", str(value)]
    return words


def _exporters(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Return the versions of the exporter of a subject; those of a file's are not known."""
    located: Located | None = args.located.get("file")
    if located is None or located.exporter is None:
        return {}
    versions = located.exporter.versions.items()
    return {located.exporter.kind: {name: version or "not installed" for name, version in versions}}


def add_findings_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "codes",
        nargs="*",
        metavar="CODE",
        help="only these, such as M02; a family, such as M; or all of a check, such as weights",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the rows as a JSON array")
    form.add_argument("--markdown", action="store_true", help="print docs/findings.md")


def findings(args: argparse.Namespace) -> int:
    """Print rows of the table of findings; returns 0."""
    from harness.checks.findings import markdown, rows

    named = {code for word in args.codes for code in _codes_named(word)}
    chosen = [row for code, row in rows().items() if not args.codes or code in named]
    codes = {word.upper() for word in args.codes}
    if args.json:
        print(json.dumps([asdict(row) for row in chosen], indent=2))
    elif args.markdown:
        print(markdown(), end="")
    else:
        lines = (line for row in chosen for line in _explained(row, row.code in codes))
        print_painted("".join(f"{line}\n" for line in lines))
    return 0


def _codes_named(word: str) -> list[str]:
    """Return the codes of a word: a code, the letter of a family, or the name of a check.

    Raises HarnessError, with the nearest name, for any other word.
    """
    from harness.checks.findings import SECTIONS, rows

    code, check = word.upper(), word.lower()
    families = SECTIONS.keys() & {code}
    if code in rows():
        return [code]
    if found := [
        row.code for row in rows().values() if row.check == check or row.code[0] in families
    ]:
        return found
    checks = {row.check for row in rows().values()}
    raise HarnessError(
        f"no finding has the code '{word}', and no check has this name; "
        + (did_you_mean(code, rows()) or did_you_mean(check, sorted(checks)))
        + "`harness findings` lists all"
    )


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
        if (not warnings and case.outcome == "known") or (not found and (warnings or case.passes)):
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
