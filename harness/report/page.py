"""Renders a page: one HTML file that fetches nothing, in which all text is escaped.

Its policy allows the style and the script of this folder by their hashes, and nothing else. The
templates are `run.html.jinja` and `gate.html.jinja`. `ShownCase` is a case as a page shows it; a
`Section` has groups of them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness.report.commands import bisect_command, repeat_command, to_fill_in
from harness.report.drawings import largest_share, percent, pieces
from harness.results import NOT_APPLICABLE, Case, Header, RecordedFinding
from harness.results.cases import MAX_FINDINGS
from harness.text import clip, printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# How a case is shown, the worst first: by its outcome, or as a warning if it passes with one.
MARKS = {
    "crash": "\u2717",
    "error": "\u2717",
    "timeout": "\u2717",
    "fail": "\u2717",
    "warning": "!",
    "known": "k",
    "pass": "\u2713",
    "skip": "\u2013",
}
_MAX_SUMMARY = 160
_MAX_LISTED, _MANY = 8, 500  # subjects of a skipped check, if a reason has so many cases
_MAX_TENSOR = 60
_FOLDER = Path(__file__).parent
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">'
    '<circle cx="4" cy="4" r="4" fill="{}"/></svg>'
)
_ICONS = {"good": "#2f9e44", "bad": "#d0342c", "note": "#c98a00"}


def render(template: str, page: object, tone: str, script: str = "") -> str:
    """Return the HTML of a page by its template, with a script of this folder by its name.

    `tone` is "good", "note" or "bad": the colour of the page's icon.
    """
    from markupsafe import Markup

    style, code = _source("page.css"), _source(script) if script else ""
    scripts = f"; script-src {_hash(code)}" if code else ""
    policy = (
        f"default-src 'none'; style-src {_hash(style)}{scripts}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        _environment()
        .get_template(f"{template}.html.jinja")
        .render(
            page=page,
            policy=Markup(policy),  # of hashes and words: nothing of a result is in it
            icon=_ICON.format(_ICONS[tone]),
            style=Markup(style),
            script=Markup(code),
        )
    )


@cache
def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_FOLDER),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value, "\n") if type(value) is str else value,
    )
    environment.filters["wrapped"] = _wrapped
    return environment


def _wrapped(value: object) -> Markup:
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(map(escape, pieces(value)))


def anchors_of(cases: Iterable[Case]) -> dict[str, str]:
    """Return an anchor for each case by its id: its letters and digits, each anchor once."""
    anchors: dict[str, str] = {}
    taken = Counter[str]()
    for case in cases:
        anchor = re.sub(r"[^\w.@+]+", "-", f"case-{case.id}").strip("-")
        taken[anchor] += 1
        anchors[case.id] = anchor if taken[anchor] == 1 else f"{anchor}--{taken[anchor]}"
    return anchors


@dataclass(frozen=True)
class ShownCase:
    """A case as the page shows it; `values` are its figures and facts, `findings` what is wrong."""

    case: Case
    anchor: str
    header: Header

    @property
    def shown(self) -> str:
        """The outcome, or "warning" for a case that passes with one."""
        return shown(self.case)

    @property
    def check(self) -> str:
        """The name of the check."""
        return self.case.check

    @property
    def place(self) -> str:
        """The subject, the mode and the runtime, without those that do not apply."""
        return " ".join(part for part in (subject_of(self.case), self.case.runtime) if part != "-")

    @property
    def seconds(self) -> str:
        """The seconds of the case."""
        return f"{self.case.seconds:.2f}"

    @property
    def share(self) -> str:
        """The largest share that a figure takes of its bound, "0" without a bound."""
        found = largest_share(self.case)
        return f"{min(found[0], 1e300):.3g}" if found else "0"

    @property
    def key(self) -> str:
        """What is wrong, or the figure that is nearest to its bound."""
        if self.case.outcome != "pass":
            return clip(self.case.summary, _MAX_SUMMARY)
        if self.shown == "warning":
            return clip(self.case.findings[0].sentence, _MAX_SUMMARY)
        if found := largest_share(self.case):
            return f"{found[1]} {self.case.figures[found[1]]}: {percent(found[0])} of its bound"
        return f"{self.case.comparisons:,} comparisons"

    @property
    def meaning(self) -> str:
        """What the check judges, in a sentence; "" for one that is not an artifact's."""
        return _meanings().get(self.case.check, "")

    @property
    def tensor(self) -> str:
        """The first tensor that the evidence of a finding about weights names, after a colon."""
        evidence = next((one.evidence for one in self.case.findings if one.code[:1] == "W"), "")
        named = re.search(r"[\w-]+(?:\.[\w-]+)+", evidence)
        return f": {clip(named[0], _MAX_TENSOR)}" if named else ""

    @property
    def reason(self) -> str:
        """The reason, unless the findings or `key` say all of it.

        A record that is full of findings lacks others: the reason ends with their number.
        """
        said = self.findings and len(self.case.findings) < MAX_FINDINGS
        summary = self.case.summary
        return "" if said or len(summary) < _MAX_SUMMARY else summary

    @property
    def findings(self) -> list[dict[str, str]]:
        """The parts of each finding: code and meaning, place, evidence and remedy."""
        found = [parts for one in self.case.findings if (parts := one.parts())]
        titled = self.shown not in ("known", "pass", "skip")  # by code and meaning
        if titled and len(found) == 1:
            found[0].pop(next(iter(found[0])))
        return [parts for parts in found if parts]

    @property
    def commands(self) -> dict[str, str]:
        """The command that repeats the case, and the one that finds the operation at fault.

        Each has the words that its user must fill in.
        """
        found = repeat_command(self.case, self.header), bisect_command(self.case, self.header)
        return {command: to_fill_in(command) for command in found if command}

    @property
    def values(self) -> dict[str, Any]:
        """The comparisons, the seconds, the figures and the facts."""
        took = {"comparisons": f"{self.case.comparisons:,}", "seconds": self.seconds}
        return took | {**self.case.figures, **self.case.facts}


@cache
def _meanings() -> dict[str, str]:
    """Return the first line of each check's docstring by the check's name; imports no check."""
    rooms = (Path(harness.__file__).with_name(room) for room in ("checks", "measure"))
    decorated = re.compile(r'@check\(\s*"([\w-]+)"[^@]*?"""([^\n]+?)(?:"""|\n)')
    files = [file for room in rooms for file in sorted(room.glob("*.py"))]
    found = (decorated.findall(file.read_text("utf-8")) for file in files)
    return {name: text.replace("`", "") for pairs in found for name, text in pairs}


@dataclass(frozen=True)
class Group:
    """Cases with one cause; `code` is that of the finding, or the outcome."""

    code: str
    meaning: str
    cases: Sequence[ShownCase]
    anchor: str = ""

    @property
    def listed(self) -> dict[str, tuple[list[str], int]]:
        """The subjects of each check, for cases that need no more than their names.

        Each has the number of those that are left out.
        """
        subjects: defaultdict[str, list[str]] = defaultdict(list)
        for one in self.cases:
            subjects[one.check].append(one.place)
        most = _MAX_LISTED if len(self.cases) > _MANY else _MANY
        return {
            check: (places[:most], max(len(places) - most, 0)) for check, places in subjects.items()
        }


@dataclass(frozen=True)
class Section:
    """Groups under a title; the first `opened` cases of each are open."""

    anchor: str
    title: str
    tone: str
    groups: Sequence[Group]
    opened: int = 0


def shown(case: Case) -> str:
    """Return the outcome of a case, or "warning" if it passes with one."""
    warns = any(finding.warning for finding in case.findings)
    return "warning" if case.outcome == "pass" and warns else case.outcome


def subject_of(case: Case) -> str:
    """Return the subject of a case with its mode, if it has one."""
    return case.fixture if case.mode == NOT_APPLICABLE else f"{case.fixture} {case.mode}"


def circumstances(header: Header) -> dict[str, Any]:
    """Return what a run depends on, by name."""
    groups = ("artifact", "versions", "exporter_packages", "machine", "options", "project")
    named = {
        f"{group.replace('_', ' ')}: {name}": value
        for group in groups
        for name, value in getattr(header, group).items()
    }
    return {"started": header.started} | named


def _grouped(
    cases: Iterable[ShownCase], key: Callable[[ShownCase], Hashable]
) -> list[list[ShownCase]]:
    """Return the cases in groups of equal keys, the largest group first."""
    groups: defaultdict[Hashable, list[ShownCase]] = defaultdict(list)
    for one in cases:
        groups[key(one)].append(one)
    return sorted(groups.values(), key=lambda group: -len(group))


def by_cause(cases: Iterable[ShownCase]) -> Iterator[Group]:
    """Yield the cases by the code of their first finding, or by outcome and check without one."""
    for group in _grouped(cases, lambda one: _cause(one.case) or (one.shown, one.check)):
        first = group[0]
        if cause := _cause(first.case):
            meaning = next(f.meaning for f in _findings(first.case) if f.code == cause)
            yield Group(cause, meaning, group)
        else:
            yield Group(first.shown, first.check, group)


def _findings(case: Case) -> list[RecordedFinding]:
    """Return the findings with a row in the table, the failures first."""
    return sorted((one for one in case.findings if one.meaning), key=lambda one: one.warning)


def _cause(case: Case) -> str:
    return next((one.code for one in _findings(case)), "")


def by_reason(cases: Iterable[ShownCase], name: str) -> list[Group]:
    """Return the cases by their reasons; `name` begins the anchors."""
    groups = _grouped(cases, lambda one: one.case.summary)
    return [
        Group(name, group[0].case.summary, group, f"{name}-{number}")
        for number, group in enumerate(groups, start=1)
    ]


def by_check(cases: Iterable[ShownCase]) -> list[Group]:
    """Return the cases by their checks."""
    groups = groupby(sorted(cases, key=lambda one: one.check), key=lambda one: one.check)
    return [
        Group("pass", check, list(group), f"pass-{number}")
        for number, (check, group) in enumerate(groups, start=1)
    ]
