"""Draws a run for a terminal of 120 columns: a row for each case, the failures, the counts."""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

from tabulate import tabulate

from harness.results import OUTCOMES, Case, Figure, Footer, Run
from harness.text import clip, one_line

WIDTH = 120
# header -> widest cell. The last column takes the rest of WIDTH.
COLUMNS = {"fixture": 18, "mode": 13, "runtime": 18, "check": 30, "outcome": 7}
LAST_COLUMN = "figure against bound"
# tabulate makes a column at least this much wider than its header, and puts a gap between two.
HEADER_PADDING, GAP = 2, 2
SHOWN_FIGURES = 2
# A longer reason is cut here; the files hold all of it.
MAX_REASON = 2000


def run_table(run: Run, colours: bool = False) -> str:
    """Return the table of a run, the reason of each case that did not pass, and a last line."""
    parts = [case_table(run.cases, colours), *_notes(run.cases), summary_line(run.footer, colours)]
    return "\n\n".join(part for part in parts if part)


def case_table(cases: Iterable[Case], colours: bool = False) -> str:
    """Return a row for each case, grouped by fixture, mode and runtime, with its key figures."""
    rows: list[list[str]] = []
    group: tuple[str, ...] = ()
    for case in sorted(cases, key=lambda c: (c.fixture, c.mode, c.runtime, c.suite, c.check)):
        same_group = group == (case.fixture, case.mode, case.runtime)
        group = (case.fixture, case.mode, case.runtime)
        rows.append(_row(case, same_group))
    rows = fit(rows, COLUMNS)
    for row in rows:
        row[4] = paint(row[4], OUTCOMES[row[4]].colour, colours)
    return draw_rows([*COLUMNS, LAST_COLUMN], rows) if rows else ""


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
    verdict = paint("PASSED", 32, colours) if footer.passed else paint("FAILED", 31, colours)
    return (
        f"{verdict}: {counts or 'no cases'}; {footer.comparisons:,} comparisons"
        f" in {footer.seconds:.1f} s"
    )


def key_figures(case: Case) -> str:
    """Return the first figures to read: those outside their bound, then those with a bound."""
    ranked = sorted(case.figures.items(), key=lambda item: _rank(item[1]))
    return "; ".join(f"{name} {figure}" for name, figure in ranked[:SHOWN_FIGURES])


def wants_colours(stream: IO[str]) -> bool:
    """Return whether a stream may show colours: it is a terminal, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


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


def _notes(cases: Iterable[Case]) -> Iterator[str]:
    """Yield a note on each case that did not pass; cases with equal reasons share one."""
    grouped: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        if case.outcome != "pass":
            grouped[case.outcome, case.summary].append(case)
    for (outcome, summary), alike in sorted(grouped.items(), key=lambda item: item[1][0].passes):
        ids = alike[0].id if len(alike) == 1 else f"{len(alike)} cases, {alike[0].id} and others"
        text = f"{outcome.upper()} {one_line(ids)}: {clip(summary, MAX_REASON)}"
        yield textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
