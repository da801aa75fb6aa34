"""Draws figures of a run in an order: times, decode steps by depth, and the runs before it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.etree import ElementTree

from harness.report.drawings import (
    MAX_LABEL,
    MAX_ROWS,
    ROW,
    SERIES,
    Drawing,
    element,
    legend_of,
    markup_of,
    runtimes_of,
    svg_of,
)
from harness.results import Case, Figure, Run
from harness.results.figures import number, with_unit
from harness.text import clip, counted

_DEPTH = re.compile(r"(.+) at (\d{1,9}) tokens")
_HEIGHT = 160  # pixels of the drawing of depths
_MAX_HISTORY = 40  # figures
_MIN_CHANGE = 0.01  # of a figure that is listed before those that did not change
_SPARK = 160, 24  # pixels


def times(cases: Sequence[Case]) -> Drawing | None:
    """Draw each time that `--measure` took, as the range between its samples' quartiles."""
    rows: defaultdict[str, list[tuple[str, str, Figure]]] = defaultdict(list)
    depths: defaultdict[tuple[str, str], dict[str, dict[int, Figure]]] = defaultdict(dict)
    timed: set[str] = set()
    for case in cases:
        for name, figure in case.figures.items():
            if figure.spread is None or not figure.finite or figure.value <= 0:
                continue
            timed.add(case.runtime)
            place = f"{case.fixture} {case.mode}"
            if match := _DEPTH.fullmatch(name):
                of_runtimes = depths[f"{match[1]}, {place}", figure.unit]
                of_runtimes.setdefault(case.runtime, {})[int(match[2])] = figure
            else:
                rows[figure.unit].append((f"{name}, {place}", case.runtime, figure))
    if not timed:
        return None
    runtimes = runtimes_of(cases)
    figures = [legend_of(runtimes, timed)]
    figures += [_ranges(unit, row[:MAX_ROWS], runtimes) for unit, row in sorted(rows.items())]
    more = sum(max(len(row) - MAX_ROWS, 0) for row in rows.values())
    figures += [_by_depth(name, unit, of, runtimes) for (name, unit), of in depths.items()]
    caption = (
        "A line reaches from the low quartile of the samples, the dot, to the high one. Other work "
        "on the machine only adds time: compare the dots."
        + (f" {counted(more, 'more time')} are left out." if more else "")
    )
    return Drawing("times", "Times", caption, markup_of(*figures))


def _high(figure: Figure) -> float:
    return figure.value + (figure.spread or 0)


def _said(figure: Figure) -> str:
    return f"{number(figure.value)} to {with_unit(_high(figure), figure.unit)}"


def _ranges(
    unit: str, rows: Sequence[tuple[str, str, Figure]], runtimes: Sequence[str]
) -> ElementTree.Element:
    """Draw a row for each time of one unit, from 0 to the longest."""
    figure = element("figure")
    svg = svg_of(ROW * len(rows) + 6, f"Times in {unit}")
    figure.append(svg)
    longest = max(_high(one) for _, _, one in rows)
    for index, (name, runtime, one) in enumerate(rows):
        y, series = ROW * index + 23, f"s{runtimes.index(runtime) % SERIES}"
        label = clip(f"{name}: {_said(one)}", MAX_LABEL)
        element("text", svg, label, x="0", y=y - 11)
        low, high = (f"{1 + 97 * value / longest:.2f}%" for value in (one.value, _high(one)))
        element("line", svg, x1="1%", x2="98%", y1=y, y2=y, class_="axis")
        element("line", svg, x1=low, x2=high, y1=y, y2=y, class_=f"range {series}")
        element("circle", svg, cx=low, cy=y, r=4, class_=series)
    return figure


def _by_depth(
    name: str, unit: str, of: Mapping[str, Mapping[int, Figure]], runtimes: Sequence[str]
) -> ElementTree.Element:
    """Draw times over the number of tokens that come before, a line for each runtime."""
    figure = element("figure")
    svg = svg_of(_HEIGHT + 22, f"{name} by depth, in {unit}")
    figure.append(svg)
    depths = sorted({depth for steps in of.values() for depth in steps})
    highest = max(_high(one) for steps in of.values() for one in steps.values())
    span = max(depths[-1] - depths[0], 1)

    def at(depth: int) -> str:
        return f"{12 + 84 * (depth - depths[0]) / span:.2f}%"

    def height(value: float) -> str:
        return f"{8 + (_HEIGHT - 12) * (1 - value / highest):.1f}"

    for value in (0.0, highest / 2, highest):
        element("line", svg, x1="12%", x2="100%", y1=height(value), y2=height(value), class_="axis")
        element("text", svg, f"{value:.3g}", x="0", y=float(height(value)) + 5, class_="dim")
    for depth in depths:
        element("text", svg, str(depth), x=at(depth), y=_HEIGHT + 16, text_anchor="middle")
    for runtime, steps in of.items():
        series, found = f"s{runtimes.index(runtime) % SERIES}", sorted(steps.items())
        for (depth, one), (after, other) in pairwise(found):
            ends = {"x1": at(depth), "x2": at(after)}
            element(
                "line", svg, **ends, y1=height(one.value), y2=height(other.value), class_=series
            )
        for depth, one in found:
            ends = {"y1": height(one.value), "y2": height(_high(one))}
            element("line", svg, x1=at(depth), x2=at(depth), **ends, class_=f"range {series}")
            dot = element("circle", svg, cx=at(depth), cy=height(one.value), r=4, class_=series)
            element("title", dot, f"{runtime}, {depth} tokens: {_said(one)}")
    element("figcaption", figure, f"{name}: {unit} by the number of tokens before")
    return figure


def history(run: Run, earlier: Sequence[Run]) -> Drawing | None:
    """Draw the figures of a run over the runs before it, those that changed most first.

    A figure is one of a case by its name; each of the earlier runs that has it is a point.
    """
    runs = [*sorted(earlier, key=lambda one: one.header.started), run]
    if len(runs) < 2:
        return None
    values = [{(c.id, n): f for c in one.cases for n, f in c.figures.items()} for one in runs]
    rows = []
    for key, figure in values[-1].items():
        points = [(i, found[key].value) for i, found in enumerate(values) if key in found]
        points = [(index, value) for index, value in points if math.isfinite(value)]
        if points and sum(key in found for found in values) > 1:
            change = _change(points[0][1], figure.value) if figure.finite else math.inf
            rows.append((change, key, figure, points))
    rows.sort(key=lambda row: -abs(row[0]))
    bad = [(i, float(sum(not c.passes for c in one.cases))) for i, one in enumerate(runs)]
    table = element("table", class_="rows history")
    head = element("tr", element("thead", table))
    for title in ("figure", "course", "first", "last"):
        element("th", head, title)
    body = element("tbody", table)
    _history_row(body, "cases that fail", Figure(bad[-1][1]), bad, len(runs))
    for _, (case, name), figure, points in rows[:_MAX_HISTORY]:
        _history_row(body, f"{name}: {case}", figure, points, len(runs))
    changed = sum(abs(change) > _MIN_CHANGE for change, *_ in rows)
    more = max(len(rows) - _MAX_HISTORY, 0)
    started = ", ".join(one.header.started[:16].replace("T", " ") for one in runs)
    caption = (
        f"{counted(len(runs), 'run')}, the oldest first: {started}. {changed} of {len(rows)} "
        "figures changed by more than 1 %; those that changed most come first."
        + (f" {counted(more, 'more figure')} are left out." if more else "")
    )
    return Drawing("history", "History", caption, markup_of(table))


def _change(first: float, last: float) -> float:
    """Return how much a figure changed, as the logarithm of the ratio."""
    if first == last:
        return 0.0
    return math.log(abs(last)) - math.log(abs(first)) if first and last else math.inf


def _history_row(
    body: ElementTree.Element,
    name: str,
    figure: Figure,
    points: Sequence[tuple[int, float]],
    count: int,
) -> None:
    row = element("tr", body)
    element("td", row, name, data_name="figure")
    element("td", row, data_name="course").append(_spark(points, count))
    for title, value in (("first", points[0][1]), ("last", figure.value)):
        element("td", row, with_unit(value, figure.unit), data_name=title)


def _spark(points: Sequence[tuple[int, float]], count: int) -> ElementTree.Element:
    """Draw a small line of values, from the least to the largest."""
    width, height = _SPARK
    low, high = min(value for _, value in points), max(value for _, value in points)
    svg = element("svg", width=width, height=height, class_="spark", aria_hidden="true")
    span = high - low or 1.0
    places = [
        (
            f"{4 + (width - 8) * index / (count - 1):.1f}",
            f"{height - 4 - (height - 8) * (value - low) / span:.1f}",
        )
        for index, value in points
    ]
    element("polyline", svg, points=" ".join(map(",".join, places)), class_="s0")
    element("circle", svg, cx=places[-1][0], cy=places[-1][1], r=3, class_="s0")
    return svg
