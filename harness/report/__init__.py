"""Draws a run: a table for the terminal, JUnit XML, an HTML page and a badge. No torch.

A drawing is a function from a `Run` to a text. To add one, write it and add a row to `DRAWINGS`;
`harness report` and every suite then write it beside the stream. `gate` draws a comparison.
"""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from tabulate import tabulate

from harness.files import partial_file, writing
from harness.report.drawings import element
from harness.report.run_page import html_page
from harness.results import OUTCOMES, Case, Figure, Footer, Run
from harness.text import (
    clip,
    counted,
    is_terminal,
    not_a_folder,
    one_line,
    printable,
    terminal_width,
)

WIDTH = 120
# A table of fewer columns than this has its groups as headings; of fewer than that, its figures
# below their checks. None is cut to fewer than the last.
_WIDE, _NARROW, _MIN_WIDTH = 100, 66, 40
# header -> widest cell. The last column takes the rest of WIDTH.
COLUMNS = {"fixture": 18, "mode": 13, "runtime": 18, "check": 30, "outcome": 7}
LAST_COLUMN = "figure against bound"
# tabulate makes a column at least this much wider than its header, and puts a gap between two.
HEADER_PADDING, GAP = 2, 2
SHOWN_FIGURES = 2
_BADGE_LETTER, _BADGE_MARGIN = 6.7, 7  # pixels
# A longer reason is cut here; the files hold all of it.
MAX_REASON = 2000
# JUnit's counters, by the element that a case holds.
COUNTERS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def table_width(stream: TextIO) -> int:
    """Return the columns of a table on a stream: those of its terminal or COLUMNS, or `WIDTH`."""
    if not stream.isatty() and not os.environ.get("COLUMNS"):
        return WIDTH
    return max(_MIN_WIDTH, min(WIDTH, terminal_width(stream)))


def run_table(run: Run, colours: bool = False, width: int = WIDTH) -> str:
    """Return the table of a run, the reason of each case that did not pass, and a last line."""
    parts = [case_table(run.cases, colours, width), *_notes(run.cases, width)]
    parts.append(summary_line(run.footer, colours))
    return "\n\n".join(part for part in parts if part)


def case_table(cases: Iterable[Case], colours: bool = False, width: int = WIDTH) -> str:
    """Return a row for each case, grouped by fixture, mode and runtime, with its key figures."""
    rows: list[list[str]] = []
    headings: dict[int, str] = {}  # by the row that they precede
    group: tuple[str, ...] = ()
    for case in sorted(cases, key=lambda c: (c.fixture, c.mode, c.runtime, c.suite, c.check)):
        same_group = group == (case.fixture, case.mode, case.runtime)
        group = (case.fixture, case.mode, case.runtime)
        if not same_group:
            headings[len(rows)] = clip(", ".join(name for name in group if name != "-"), width)
        rows.append(_row(case, same_group))
    if not rows:
        return ""
    if width < _WIDE:
        return _narrow_table([row[3:] for row in rows], headings, colours, width)
    rows = fit(rows, COLUMNS, width)
    for row in rows:
        row[-2] = _painted(row[-2], colours)
    return draw_rows([*COLUMNS, LAST_COLUMN], rows)


def _narrow_table(
    rows: list[list[str]], headings: Mapping[int, str], colours: bool, width: int
) -> str:
    """Return rows of a check, its outcome and its figures; `headings` precede rows by number."""
    columns = {name: COLUMNS[name] for name in ("check", "outcome")}
    titles, below = [*columns, LAST_COLUMN], [""] * len(rows)
    if width < _NARROW:
        room = min(columns["check"], width - columns["outcome"] - HEADER_PADDING - GAP)
        titles, below = titles[:2], [clip(figures, WIDTH) for *_, figures in rows]
        rows = [[clip(check, room), outcome] for check, outcome, _ in rows]
    else:
        rows = fit(rows, columns, width)
    for row in rows:
        row[1] = _painted(row[1], colours)
    lines = draw_rows(titles, rows).splitlines()
    lines, drawn = lines[: -len(rows)], lines[-len(rows) :]
    for number, line in enumerate(drawn):
        lines += ["", headings[number]] if number in headings else []
        lines += [line, *(f"  {part}" for part in textwrap.wrap(below[number], width - 2))]
    return "\n".join(lines)


def _painted(outcome: str, colours: bool) -> str:
    return paint(outcome, OUTCOMES[outcome].colour, colours)


def fit(
    rows: Iterable[Sequence[str]], columns: Mapping[str, int], width: int = WIDTH
) -> list[list[str]]:
    """Cut each cell of rows to the width of its column, and the last to the rest of `width`."""
    cut = [[*map(clip, row[:-1], columns.values()), row[-1]] for row in rows]
    used = sum(
        max(len(header) + HEADER_PADDING, *(len(row[index]) for row in cut)) + GAP
        for index, header in enumerate(columns if cut else ())
    )
    return [[*row[:-1], clip(row[-1], width - used)] for row in cut]


def draw_rows(columns: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw rows under their headers, all as text, because tabulate would reformat a number."""
    return tabulate(rows, headers=list(columns), tablefmt="simple", disable_numparse=True)


def summary_line(footer: Footer, colours: bool = False) -> str:
    """Return the verdict, the counts, the comparisons and the seconds of a run in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in footer.counts.items() if count)
    counts += f", {counted(footer.warnings, 'warning')}" if footer.warnings else ""
    verdict = paint("PASSED", 32, colours) if footer.passed else paint("FAILED", 31, colours)
    return (
        f"{verdict}: {counts or 'no cases'}; {footer.comparisons:,} comparisons"
        f" in {footer.seconds:.1f} s"
    )


def key_figures(case: Case) -> str:
    """Return the first figures to read: those outside their bound, then those with a bound."""
    ranked = sorted(case.figures.items(), key=lambda item: _rank(item[1]))
    return "; ".join(f"{name} {figure}" for name, figure in ranked[:SHOWN_FIGURES])


def wants_colours(stream: TextIO) -> bool:
    """Return whether a stream may show colours: it is a terminal, and NO_COLOR is not set."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, colour: int, colours: bool) -> str:
    """Return text in an ANSI colour, or unchanged."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text


def _row(case: Case, same_group: bool) -> list[str]:
    group = [""] * 3 if same_group else [case.fixture, case.mode, case.runtime]
    return [*group, case.check, case.outcome, key_figures(case)]


def _rank(figure: Figure) -> int:
    if not figure.within_bound:
        return 0
    return 2 if figure.bound is None else 1


def _notes(cases: Iterable[Case], width: int) -> Iterator[str]:
    """Yield a note on each warning, and on each case that did not pass; failures come last.

    Cases with equal reasons share a note.
    """
    grouped: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        for finding in case.findings:
            if finding.warning:
                grouped["warning", finding.sentence].append(case)
        if case.outcome != "pass":
            grouped[case.outcome, case.summary].append(case)
    notes = sorted(
        grouped.items(), key=lambda item: item[0][0] != "warning" and not item[1][0].passes
    )
    for (outcome, summary), alike in notes:
        ids = alike[0].id if len(alike) == 1 else f"{len(alike)} cases, {alike[0].id} and others"
        text = f"{outcome.upper()} {one_line(ids)}: {clip(summary, MAX_REASON)}"
        yield textwrap.fill(text, width, subsequent_indent="    ", break_on_hyphens=False)


def junit_xml(run: Run) -> str:
    """Return the run as JUnit XML: a test suite for each suite, a test case for each case.

    `fail` is a failure; `error`, `crash` and `timeout` are errors; `skip` and `known` are skipped,
    with their reason.
    """
    root = ElementTree.Element("testsuites", name="coreml-llm-harness")
    _count(root, run.cases, run.footer.seconds)
    in_order = sorted(run.cases, key=lambda case: case.suite)
    for suite, group in groupby(in_order, key=lambda case: case.suite):
        cases = tuple(group)
        element = ElementTree.SubElement(
            root, "testsuite", name=printable(suite), timestamp=printable(run.header.started)
        )
        _count(element, cases, sum(case.seconds for case in cases))
        for case in cases:
            _add_case(element, case)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _count(element: ElementTree.Element, cases: tuple[Case, ...], seconds: float) -> None:
    elements = [OUTCOMES[case.outcome].junit for case in cases]
    element.set("tests", str(len(cases)))
    for attribute, junit in COUNTERS.items():
        element.set(attribute, str(elements.count(junit)))
    element.set("time", f"{seconds:.3f}")


def _add_case(suite: ElementTree.Element, case: Case) -> None:
    element = ElementTree.SubElement(
        suite,
        "testcase",
        classname=printable(f"{case.suite}.{case.check}"),
        name=printable(case.id),
        time=f"{case.seconds:.3f}",
    )
    junit = OUTCOMES[case.outcome].junit
    if junit:
        message = printable(f"{case.outcome}: {case.summary}")
        attributes = {"message": message} | ({} if junit == "skipped" else {"type": case.outcome})
        ElementTree.SubElement(element, junit, attributes)
    output = ElementTree.SubElement(element, "system-out")
    output.text = printable(_details(case), keep="\n")


def _details(case: Case) -> str:
    """Return the findings, the comparisons, the figures and the facts, a line each."""
    lines = [f"{name}: {text}" for one in case.findings for name, text in one.parts().items()]
    lines.append(f"comparisons: {case.comparisons}")
    lines += [f"{name}: {figure}" for name, figure in case.figures.items()]
    lines += [f"{name}: {fact}" for name, fact in case.facts.items()]
    return "\n".join(lines)


def badge(run: Run) -> str:
    """Return a badge for a README: an SVG that says whether the run passed, and how many cases."""
    counts = run.footer.counts
    judged = len(run.cases) - counts.get("skip", 0)
    bad = sum(not case.passes for case in run.cases)
    said = f"{bad} of {judged} failed" if bad else "nothing compared"
    if run.footer.passed:
        said = f"{counts.get('pass', 0)} passed"
    texts = ("Core ML conformance", said)
    widths = [_BADGE_LETTER * len(text) + 2 * _BADGE_MARGIN for text in texts]
    svg = element(
        "svg", xmlns="http://www.w3.org/2000/svg", width=f"{sum(widths):g}", height=20, role="img"
    )
    element("title", svg, ": ".join(texts))
    colours = ("#444c54", "#1d7a37" if run.footer.passed else "#b3201f")
    font = {"fill": "#fff", "font_family": "Verdana, sans-serif", "font_size": 11}
    left = 0.0
    for text, width, colour in zip(texts, widths, colours, strict=True):
        element("rect", svg, x=f"{left:g}", width=f"{width:g}", height=20, fill=colour)
        element("text", svg, text, x=f"{left + _BADGE_MARGIN:g}", y=14, **font)
        left += width
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


# file name -> text of a run
DRAWINGS: dict[str, Callable[[Run], str]] = {
    "table.txt": lambda run: run_table(run) + "\n",
    "junit.xml": junit_xml,
    "index.html": html_page,
    "badge.svg": badge,
}


def write_report(run: Run, folder: Path, earlier: Sequence[Run] = ()) -> list[Path]:
    """Write every drawing of a run into a folder and return the paths, as `write_texts` does.

    The page shows the figures of `earlier` runs, too.
    """
    drawings = DRAWINGS | {"index.html": partial(html_page, earlier=earlier)}
    return write_texts({name: draw(run) for name, draw in drawings.items()}, folder)


def write_texts(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write texts by file name into a folder, each whole or not at all, and return the paths.

    Raises HarnessError when the folder or a file cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        if folder.is_file():
            raise not_a_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with partial_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]
