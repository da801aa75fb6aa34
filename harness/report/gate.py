"""Draws a comparison of BASE and HEAD: Markdown for a pull request, JSON, and a page."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from harness.measure import GateResult, Metric
from harness.measure.verdicts import TIERS, VERDICTS
from harness.report import WIDTH, write_texts
from harness.report.page import circumstances, render
from harness.results import Header
from harness.text import clip, counted, one_line

VERSION = 1  # of gate.schema.json
HEADLINES = {0: "PASSED", 1: "FAILED", 4: "UNDECIDED"}
_TONES = {
    "regression": "bad",
    "changed": "bad",
    "inconclusive": "note",
    "failing": "note",
    "waived": "note",
}
# title -> verdict, in the order of the page; then those that are folded
_OPEN = {
    "Regressions": "regression",
    "Changed": "changed",
    "Undecided": "inconclusive",
}
_FOLDED = {
    "Failing in both": "failing",
    "Waived": "waived",
    "Accepted changes": "accepted",
    "Better": "better",
    "Of another machine": "unjudged",
    "New in HEAD": "new",
    "Skipped in both": "skipped",
    "The same": "same",
}
_COLUMNS = ("where", "metric", "BASE", "HEAD", "verdict")
# A comment on GitHub holds 65,536 characters; gate.json has all rows.
_MAX_OPEN, _MAX_FOLD = 32_000, 4_000  # characters of the first table, and of each that is folded
_MAX_CELL = 160
# In a terminal: metrics shown of a case, as the first few tell the pattern, and a verdict's width.
_MAX_METRICS, _VERDICT_WIDTH, _INDENT = 12, 13, "  "


@dataclass(frozen=True)
class Comparison:
    """A result of the gate with its circumstances.

    `base` and `head` describe the sides: `name` as the user gave it, `kind`, and more. `repeat`
    returns the command that repeats a metric's comparison.
    """

    base: Mapping[str, Any]
    head: Mapping[str, Any]
    header: Header
    seconds: float
    result: GateResult
    repeat: Callable[[Metric], str] = field(default=lambda metric: "", compare=False)

    @property
    def verdict(self) -> str:
        """The verdict in a word."""
        return HEADLINES[self.result.status]

    @property
    def summary(self) -> str:
        """The number of metrics with each verdict, and the tiers that were left out."""
        counts = ", ".join(f"{count} {name}" for name, count in self.result.counts.items() if count)
        summary = f"{len(self.result.metrics)} metrics: {counts}"
        chosen = self.header.options.get("tier")
        left = [tier for tier in TIERS if tier not in chosen] if isinstance(chosen, list) else []
        return f"{summary}; not judged: {', '.join(left)}" if left else summary

    def to_json(self) -> dict[str, Any]:
        """Return all of it as the JSON object that gate.schema.json describes."""
        circumstances = self.header.to_json()
        return {
            "type": "gate",
            "schema": VERSION,
            "base": dict(self.base),
            "head": dict(self.head),
            **{name: circumstances[name] for name in ("started", "versions", "machine")},
            **{name: circumstances[name] for name in ("options", "project")},
            "seconds": self.seconds,
            **self.result.to_json(),
        }

    def commands(self) -> list[str]:
        """Return the commands that repeat what fails or is undecided, each once."""
        shown = (metric for verdict in _OPEN.values() for metric in self.rows(verdict))
        return list(dict.fromkeys(filter(None, map(self.repeat, shown))))

    def rows(self, verdict: str) -> list[Metric]:
        """Return the metrics of one verdict."""
        return [metric for metric in self.result.metrics if metric.verdict == verdict]


@dataclass(frozen=True)
class Row:
    """A row: its cells, then a cell of the verdict with its reason.

    `tone` is "good", "note" or "bad". A click, or a bad tone, opens it to all `values`.
    """

    cells: Sequence[str]
    verdict: str
    tone: str
    reason: str = ""
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
    """What a page shows: the verdict and the hint, then sections, then commands and notes."""

    title: str
    verdict: str
    tone: str
    summary: str
    sections: Sequence[Section]
    circumstances: Mapping[str, Any]
    hint: str = ""
    commands: Sequence[str] = ()
    notes: Sequence[str] = ()

    def html(self) -> str:
        """Return the page as one HTML file, which fetches nothing and runs nothing."""
        return render("gate", self, self.tone)


def merged(metrics: Iterable[Metric]) -> list[Metric]:
    """Return the metrics, but one for a change that several places share; it counts the places."""
    groups: dict[tuple[object, ...], list[Metric]] = {}
    for metric in metrics:
        is_change = metric.verdict == "changed" and not metric.numbers
        place = None if is_change else metric.case
        shared = (place, metric.name, metric.base, metric.head, metric.verdict, metric.reason)
        groups.setdefault((*shared, metric.accept), []).append(metric)
    return [
        replace(first, case=f"{first.case}, and in {counted(len(others), 'more place')}")
        if others
        else first
        for first, *others in groups.values()
    ]


def html_page(comparison: Comparison) -> str:
    """Return the page: regressions, changes and undecided metrics first, the rest folded."""
    folds = [*dict.fromkeys(_OPEN, False).items(), *dict.fromkeys(_FOLDED, True).items()]
    titles = {**_OPEN, **_FOLDED}
    sides = {
        f"{side}: {name}": value
        for side, described in (("BASE", comparison.base), ("HEAD", comparison.head))
        for name, value in _flat(described)
    }
    return Page(
        title=f"{comparison.head['name']} against {comparison.base['name']}",
        verdict=comparison.verdict,
        tone={"PASSED": "good", "FAILED": "bad"}.get(comparison.verdict, "note"),
        summary=f"{comparison.summary}; in {comparison.seconds:.0f} s",
        sections=[
            _section(title, found, folded)
            for title, folded in folds
            if (found := merged(comparison.rows(titles[title])))
        ],
        circumstances=sides | circumstances(comparison.header),
        hint=acceptance(comparison.result),
        commands=comparison.commands(),
        notes=comparison.result.notes,
    ).html()


def _section(title: str, metrics: Sequence[Metric], folded: bool) -> Section:
    """Return the table of metrics, without the columns in which no metric has a value."""
    rows = list(map(_row, metrics))
    kept = [i for i in range(len(_COLUMNS) - 1) if any(row.cells[i] for row in rows)]
    rows = [replace(row, cells=[row.cells[i] for i in kept]) for row in rows]
    return Section(title, [*(_COLUMNS[i] for i in kept), _COLUMNS[-1]], rows, folded)


def _row(metric: Metric) -> Row:
    numbers = {
        name: (f"{value:,}" if isinstance(value, int) else f"{value:.6g}")
        if isinstance(value, float | int)
        else ", ".join(f"{v:.4g}" for v in value)
        for name, value in metric.numbers.items()
    }
    return Row(
        cells=(metric.case, metric.name, metric.base, metric.head),
        verdict=metric.verdict,
        tone=_TONES.get(metric.verdict, "good"),
        reason=metric.reason,
        values=numbers,
    )


def _flat(described: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in described.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}: {key}", inner) for key, inner in value.items())
        else:
            yield name, value


def acceptance(result: GateResult) -> str:
    """Return the sentence on how to accept what changed; "" when nothing waits for that."""
    options = " ".join(f"--accept {shlex.quote(name)}" for name in result.unaccepted)
    return f"To accept what changed: {options}" if options else ""


def list_metrics(metrics: Sequence[Metric], everything: bool, width: int = WIDTH) -> str:
    """List metrics under their cases, the worst verdicts first."""
    ranks = list(VERDICTS)
    cases: dict[str, list[Metric]] = {}
    for metric in metrics if everything else merged(metrics):
        cases.setdefault(metric.case, []).append(metric)
    printed = []
    for case, group in cases.items():
        printed.append(clip(case, width))
        ranked = sorted(group, key=lambda metric: ranks.index(metric.verdict))
        shown = ranked if everything else ranked[:_MAX_METRICS]
        printed += [_metric_line(metric, width) for metric in shown]
        if len(shown) < len(ranked):
            printed.append(f"{_INDENT}{len(ranked) - len(shown)} more (--all)")
    return "\n".join(printed)


def _metric_line(metric: Metric, width: int) -> str:
    values = f"{metric.base or '(none)'} -> {metric.head or '(none)'}"
    said = [values] if metric.base or metric.head else []
    said += [metric.reason] if metric.reason else []
    return textwrap.fill(
        one_line(f"{metric.name}: {'; '.join(said)}"),
        width,
        initial_indent=f"{_INDENT}{metric.verdict:<{_VERDICT_WIDTH}}",
        subsequent_indent=_INDENT + " " * (_VERDICT_WIDTH + 4),
        break_on_hyphens=False,
    )


def markdown(comparison: Comparison) -> str:
    """Return a comment for a pull request: the verdict, what fails or is open, the rest folded."""
    parts = [
        f"### {comparison.verdict}: {code(comparison.head['name'])} against"
        f" {code(comparison.base['name'])}",
        f"{comparison.summary}; in {comparison.seconds:.0f} s",
        *_other_versions(comparison),
    ]
    shown = merged(metric for verdict in _OPEN.values() for metric in comparison.rows(verdict))
    parts += _markdown_table(shown, _MAX_OPEN)
    if hint := acceptance(comparison.result):
        parts.append(f"To accept what changed, add {code(hint.partition(': ')[2])}")
    for title, verdict in _FOLDED.items():
        found = merged(comparison.rows(verdict))
        if found and verdict != "same":
            table = "\n\n".join(_markdown_table(found, _MAX_FOLD))
            parts.append(_fold(f"{title} ({len(found)})", table))
    if notes := [f"- {prose(note)}" for note in comparison.result.notes]:
        parts.append(_fold("Notes", "\n".join(_first(notes, _MAX_FOLD))))
    if commands := comparison.commands():
        lines = "\n".join(_first(commands, _MAX_FOLD))
        parts.append(_fold("Repeat it", f"```console\n{lines}\n```"))
    return "\n\n".join(parts) + "\n"


def _other_versions(comparison: Comparison) -> Iterator[str]:
    """Yield a line with the versions in which the two exporters differ, if they do."""
    base, head = (side.get("versions", {}) for side in (comparison.base, comparison.head))
    differing = [name for name in {**base, **head} if base.get(name) != head.get(name)]
    if base and head and differing:
        changes = (f"{n} {base.get(n, 'none')} to {head.get(n, 'none')}" for n in differing)
        yield f"Versions: {prose(', '.join(changes))}"


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _first(lines: Sequence[str], budget: int) -> list[str]:
    """Return the first lines, at most `budget` characters of them."""
    lengths = accumulate(len(line) + 1 for line in lines)
    return [line for line, length in zip(lines, lengths, strict=True) if length <= budget]


def _markdown_table(metrics: Sequence[Metric], budget: int) -> Iterator[str]:
    if not metrics:
        return
    rows = []
    for metric in metrics:
        said = f"**{metric.verdict}** {prose(metric.reason)}".rstrip()
        cells = [code(text) for text in (metric.case, metric.name, metric.base, metric.head)]
        rows.append(f"| {' | '.join([*cells, said])} |")
    shown = _first(rows, budget)
    header = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    yield "\n".join([*header, *shown])
    if len(shown) < len(rows):
        yield f"{len(rows) - len(shown)} more are in gate.json"


def code(text: str) -> str:
    """Return a text of others as code of Markdown, in which no character means anything."""
    text = clip(text, _MAX_CELL).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Return a text of others as words of Markdown: no markup, no mention, no link."""
    text = escape(clip(text, 3 * _MAX_CELL), quote=False)
    text = re.sub(r"([\\`*_{}\[\]()#!|~]|^[-+])", r"\\\1", text)
    return re.sub(r"(?<=[@#/])(?=\w|/)|(?<=www)(?=\.)", "<wbr>", text)


# file name -> text of a comparison
DRAWINGS: dict[str, Callable[[Comparison], str]] = {
    "gate.json": lambda comparison: json.dumps(comparison.to_json(), indent=2) + "\n",
    "gate.md": markdown,
    "index.html": html_page,
}


def write_gate(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every drawing of a comparison into a folder and return the paths."""
    return write_texts({name: draw(comparison) for name, draw in DRAWINGS.items()}, folder)
