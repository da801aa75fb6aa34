"""Draws a run as one HTML page: no script, no other file, all text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from harness.report.table import key_figures, summary_line
from harness.results import Case, Run
from harness.text import printable

# The policy forbids every fetch and every script: even a text that is not escaped is harmless.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>coreml-llm-harness results</title>
<style>
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8884; padding: .3rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { position: sticky; top: 0; background: Canvas; }
.pass { color: #2a8a3a; } .known { color: #2a7f9a; } .skip { color: #9a7400; }
.fail, .error, .crash, .timeout { color: #d03030; font-weight: bold; }
dt { float: left; clear: left; min-width: 12rem; opacity: .7; } dd { margin: 0 0 0 13rem; }
</style>
</head>
<body>
"""
_COLUMNS = ("fixture", "mode", "runtime", "suite/check", "outcome", "figures and facts", "seconds")


def html_page(run: Run) -> str:
    """Return the run as one self-contained HTML page."""
    verdict = "pass" if run.footer.passed else "fail"
    return "".join(
        (
            _HEAD,
            "<h1>coreml-llm-harness results</h1>\n",
            f'<p class="{verdict}">{_text(summary_line(run.footer))}</p>\n',
            _definitions("What these results depend on", _circumstances(run)),
            f"<table>\n<thead><tr>{_cells('th', map(_text, _COLUMNS))}</tr></thead>\n<tbody>\n",
            *(_row(case) for case in _worst_first(run.cases)),
            "</tbody>\n</table>\n</body>\n</html>\n",
        )
    )


def _worst_first(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: (case.passes, case.id))


def _row(case: Case) -> str:
    outcome = f'<span class="{case.outcome}">{case.outcome}</span>'
    cells = (
        _text(case.fixture),
        _text(case.mode),
        _text(case.runtime),
        _text(f"{case.suite}/{case.check}"),
        f"{outcome}<br>{_text(case.summary)}" if case.summary else outcome,
        _definitions(key_figures(case) or f"{case.comparisons:,} comparisons", _numbers(case)),
        f"{case.seconds:.2f}",
    )
    return f"<tr>{_cells('td', cells)}</tr>\n"


def _numbers(case: Case) -> dict[str, Any]:
    return {"comparisons": f"{case.comparisons:,}", **case.figures, **case.facts}


def _circumstances(run: Run) -> dict[str, Any]:
    groups = ("artifact", "versions", "exporter_packages", "machine", "options", "project")
    named = {
        f"{group.replace('_', ' ')}: {name}": value
        for group in groups
        for name, value in getattr(run.header, group).items()
    }
    return {"started": run.header.started} | named


def _definitions(summary: str, values: Mapping[str, Any]) -> str:
    """Return a list of names and values that opens on a click."""
    pairs = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in values.items()
    )
    return f"<details><summary>{_text(summary)}</summary><dl>{pairs}</dl></details>\n"


def _cells(tag: str, markup: Iterable[str]) -> str:
    return "".join(f"<{tag}>{cell}</{tag}>" for cell in markup)


def _text(value: Any) -> str:
    """Return a value as text of the page, escaped, because results are untrusted."""
    return escape(printable(str(value)))
