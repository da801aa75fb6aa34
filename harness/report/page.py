"""Draws a page: a verdict, sections of rows, circumstances. No script; all text is escaped.

The pages of a run and of a gate are a `Page` each, which `page.html.jinja` draws.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.report.table import key_figures, summary_line
from harness.results import NOT_APPLICABLE, Case, Header, Run
from harness.text import printable

TEMPLATE = Path(__file__).with_name("page.html.jinja")
# A word longer than this may break after its punctuation; a shorter one, such as 2e-07, never.
_LONG_WORD = re.compile(r"\S{13,}")
_AFTER_PUNCTUATION = re.compile(r"(?<=[^\w\s])(?=\w)|(?<=_)(?=[^\W_])")
_SESSIONS = ("operators", "upstream", "installation", "large")
_CASE_COLUMNS = ("fixture", "mode", "runtime", "check", "seconds", "outcome")


@dataclass(frozen=True)
class Row:
    """A row: its cells, then a cell of the verdict with its reason.

    `tone` is "good", "note" or "bad". A click, or a bad tone, opens `key` to the `command` that
    repeats the row and to all `values`.
    """

    cells: Sequence[str]
    verdict: str
    tone: str
    reason: str = ""
    key: str = ""
    command: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A table below its title; a folded one opens on a click, one without rows is left out."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """What a page shows, from the top down."""

    title: str
    verdict: str
    tone: str
    summary: str
    sections: Sequence[Section]
    circumstances: Mapping[str, Any]
    notes: Sequence[str] = ()

    def html(self) -> str:
        """Return the page as one HTML file, which fetches nothing and runs nothing."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(
            autoescape=True,
            undefined=StrictUndefined,
            finalize=lambda value: printable(value, "\n") if type(value) is str else value,
        )
        environment.filters["pieces"] = pieces
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(page=self) + "\n"


def pieces(value: object) -> list[str]:
    """Return the parts of a text between which a line may end beside its spaces."""
    text = _LONG_WORD.sub(
        lambda word: _AFTER_PUNCTUATION.sub("\0", word.group()), printable(str(value))
    )
    return text.split("\0")


def html_page(run: Run) -> str:
    """Return the page of a run: failures first, skips by reason, and commands that repeat cases."""
    by: defaultdict[str, list[Case]] = defaultdict(list)
    for case in sorted(run.cases, key=lambda case: case.id):
        by[case.outcome if case.passes else "bad"].append(case)
    verdict, _, summary = summary_line(run.footer).partition(": ")
    sections = [Section("Failures", _CASE_COLUMNS, _rows(run, by.pop("bad", [])))]
    for outcome, title in (("known", "Known defect"), ("skip", "Skipped")):
        sections += _by_reason(run, title, by.pop(outcome, []))
    sections[1:1] = [
        Section("Passed", _CASE_COLUMNS, _rows(run, cases)) for _, cases in sorted(by.items())
    ]
    return Page(
        title="Results of " + (", ".join(sorted({case.suite for case in run.cases})) or "a run"),
        verdict=verdict,
        tone="good" if run.footer.passed else "bad",
        summary=summary,
        sections=sections,
        circumstances=circumstances(run.header),
    ).html()


def _by_reason(run: Run, title: str, cases: Iterable[Case]) -> Iterator[Section]:
    """Yield a folded section for each reason, the most frequent first."""
    alike: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        alike[case.summary].append(case)
    for reason, group in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0])):
        rows = _rows(run, group, with_reason=False)
        yield Section(f"{title}: {reason}", _CASE_COLUMNS, rows, folded=True)


def _rows(run: Run, cases: Iterable[Case], with_reason: bool = True) -> list[Row]:
    return [
        Row(
            cells=(case.fixture, case.mode, case.runtime, case.check, f"{case.seconds:.2f}"),
            verdict=case.outcome,
            tone="bad" if not case.passes else "good" if case.outcome == "pass" else "note",
            reason=case.summary if with_reason else "",
            key=key_figures(case) or f"{case.comparisons:,} comparisons",
            command=repeat_command(case, run.header),
            values={"comparisons": f"{case.comparisons:,}", **case.figures, **case.facts},
        )
        for case in cases
    ]


def repeat_command(case: Case, header: Header) -> str:
    """Return the command that runs a case again, quoted for a shell; "" where there is none.

    A path is not recorded: words in capitals stand for one.
    """
    if case.suite == "conformance":
        return shlex.join(_conformance(case, header))
    if case.suite == "check":
        return shlex.join(_check(case, header))
    return shlex.join(["nox", "-s", case.suite]) if case.suite in _SESSIONS else ""


def _conformance(case: Case, header: Header) -> Iterator[str]:
    label, _, name = case.fixture.rpartition(":")
    yield from ("harness", "conformance", "--fixture", name)
    if label or header.options.get("exporter", "default") != "default":
        yield from ("--exporter", _exporter(label or "executorch", header))
    yield from _option("mode", case.mode)
    yield from _option("runtime", case.runtime)
    yield from ("-k", " and ".join(case.check.split("-")))


def _check(case: Case, header: Header) -> Iterator[str]:
    yield from ("harness", "check")
    if header.exporters:  # a subject of the project's, or a built-in model
        (label,) = header.exporters
        mode = "" if case.mode == NOT_APPLICABLE else f"/{case.mode}"
        yield f"{_exporter(label, header)}:{case.fixture.rpartition(':')[2]}{mode}"
    else:
        yield case.fixture
        sources = header.options.get("compared with", ())
        for name in () if isinstance(sources, str) else sources:
            yield from (f"--{name}", str(name).upper())
            yield from ("--params", "PARAMS") if name == "checkpoint" else ()
    yield from _option("runtime", case.runtime)
    yield from ("--check", case.check)


def _option(name: str, value: str) -> Iterator[str]:
    if value != NOT_APPLICABLE:
        yield from (f"--{name}", value)


def _exporter(label: str, header: Header) -> str:
    """Return the exporter that a label means in a run, as the command line names it."""
    version = header.exporters.get(label, {}).get("executorch", "")
    if label != "executorch" or not version:
        return label
    return "executorch@CHECKOUT" if "+" in version else f"executorch@{version}"


def circumstances(header: Header) -> dict[str, Any]:
    """Return what a run depends on, by name."""
    groups = ("artifact", "versions", "exporter_packages", "machine", "options", "project")
    named = {
        f"{group.replace('_', ' ')}: {name}": value
        for group in groups
        for name, value in getattr(header, group).items()
    }
    return {"started": header.started} | named
