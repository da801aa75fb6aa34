"""Draws a page: a verdict, sections of rows, circumstances. No script; all text is escaped.

The pages of a run and of a gate are a `Page` each, which `page.html.jinja` draws.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.text import printable

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("page.html.jinja")
# A word longer than this may break after its punctuation; a shorter one, such as 2e-07, never.
_LONG_WORD = re.compile(r"\S{13,}")
_AFTER_PUNCTUATION = re.compile(r"(?<=[^\w\s])(?=\w)|(?<=_)(?=[^\W_])")


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
        return _template().render(page=self) + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value, "\n") if type(value) is str else value,
    )
    environment.filters["pieces"] = pieces
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def pieces(value: object) -> list[str]:
    """Return the parts of a text between which a line may end beside its spaces."""
    text = _LONG_WORD.sub(
        lambda word: _AFTER_PUNCTUATION.sub("\0", word.group()), printable(str(value))
    )
    return text.split("\0")
