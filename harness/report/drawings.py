"""Draws figures of a run as inline SVG: errors against bounds, and weights. `series.py` has more.

Horizontal places are percentages, so that a drawing fits any width and its text keeps its size.
Colours are classes of `page.css`; the page's policy allows no style attribute.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from harness.results import Case, Figure
from harness.text import clip, counted, printable

if TYPE_CHECKING:
    from markupsafe import Markup

SERIES = 6  # colours of page.css
MAX_ROWS, _MAX_SUBJECTS = 60, 12  # of a drawing
_SMALLEST = -9  # power of ten at the left end of the axis of errors
MAX_LABEL = 56  # letters
ROW, _TOP = 34, 26  # pixels
_STORED = re.compile(r"package (\d{1,9}) (.+) weight bytes")


@dataclass(frozen=True)
class Drawing:
    """A drawing of a page: its anchor, its title, a sentence on how to read it, and its SVG."""

    anchor: str
    title: str
    caption: str
    markup: Markup


def element(
    name: str, parent: ElementTree.Element | None = None, text: str = "", **attributes: object
) -> ElementTree.Element:
    """Return a new element, in its parent if it has one.

    Underscores of attributes become hyphens; one at the end is left out.
    """
    named = {
        n.rstrip("_").replace("_", "-"): printable(str(value)) for n, value in attributes.items()
    }
    made = ElementTree.Element(name, named)
    made.text = printable(text) or None
    if parent is not None:
        parent.append(made)
    return made


def svg_of(height: float, label: str) -> ElementTree.Element:
    """Return an SVG as wide as the page, `height` pixels high; screen readers say its label."""
    return element("svg", height=f"{height:g}", role="group", aria_label=label)


def markup_of(*elements: ElementTree.Element) -> Markup:
    """Return elements as markup; their texts are escaped."""
    from markupsafe import Markup

    return Markup("\n".join(ElementTree.tostring(e, encoding="unicode") for e in elements))


def share_of_bound(figure: Figure) -> float | None:
    """Return how much of its bound a figure takes: 1 is the bound, and more misses it.

    Return infinity for NaN, and None where a bound does not divide: there is none, it is not above
    0, or only one value is right. In dB, the share is of the error's size.
    """
    if figure.bound is None or figure.better == "exact":
        return None
    if not figure.finite:
        return math.inf
    if figure.unit == "dB":
        exponent = (figure.bound - figure.value) / 20
        return 10 ** min(exponent if figure.better == "higher" else -exponent, 300.0)
    if figure.bound <= 0:
        return None
    if figure.better == "lower":
        return max(figure.value, 0) / figure.bound
    return figure.bound / figure.value if figure.value > 0 else math.inf


def largest_share(case: Case) -> tuple[float, str] | None:
    """Return the share of the figure that is nearest to its bound or beyond, and its name."""
    shares = ((share_of_bound(figure), name) for name, figure in case.figures.items())
    return max(((share, name) for share, name in shares if share is not None), default=None)


def percent(share: float) -> str:
    """Return a share of a bound as text."""
    return f"{100 * share:.3g} %" if share < 10 else f"{share:.3g} times"


def errors(cases: Sequence[Case], anchors: Mapping[str, str]) -> Drawing | None:
    """Draw the share of its bound that each figure takes, on a logarithmic axis.

    A row is a figure of a check; figures of several places share one. `anchors` has the page's
    anchor of each case by its id.
    """
    rows: defaultdict[str, list[tuple[float, Case, str]]] = defaultdict(list)
    for case in cases:
        for name, figure in case.figures.items():
            if (share := share_of_bound(figure)) is not None:
                rows[f"{case.check}: {name.partition('@')[0]}"].append((share, case, name))
    if not rows:
        return None
    runtimes = sorted({case.runtime for row in rows.values() for _, case, _ in row})
    worst_first = sorted(rows.items(), key=lambda row: -max(s for s, _, _ in row[1]))
    shown = worst_first[:MAX_ROWS]
    powers = [_power(share) for _, row in shown for share, _, _ in row]
    axis = _Axis(min(0, math.floor(min(powers))), max(1, math.ceil(max(powers))))
    svg = svg_of(_TOP + ROW * len(shown) + 6, "Share of its bound that each figure takes")
    for power in range(axis.low, axis.high + 1):
        x = axis.at(power)
        kind = "bound" if power == 0 else "axis"
        element("line", svg, x1=x, x2=x, y1=18, y2="100%", class_=kind)
        if power % axis.step == 0:
            anchor = "end" if power == axis.high else "start" if power == axis.low else "middle"
            text = "bound" if power == 0 else f"1e{power}"
            element("text", svg, text, x=x, y=12, class_="dim", text_anchor=anchor)
    for number_, (name, row) in enumerate(shown):
        _error_row(svg, axis, _TOP + ROW * number_, name, row, runtimes, anchors)
    more = len(worst_first) - len(shown)
    caption = (
        "Each dot is a case; right of the red line a figure misses its bound. The axis is "
        "logarithmic: at 1e-2, a figure takes a hundredth of its bound."
        + (f" {counted(more, 'more figure')} are farther from their bounds." if more else "")
    )
    return Drawing("errors", "Errors against bounds", caption, markup_of(legend_of(runtimes), svg))


def _power(share: float) -> float:
    return min(max(math.log10(share), _SMALLEST), 3) if share > 0 else _SMALLEST


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis between two powers of ten."""

    low: int
    high: int

    @property
    def step(self) -> int:
        """The distance of two labels, in powers of ten."""
        return 1 if self.high - self.low <= 6 else 2

    def at(self, power: float) -> str:
        """Return the place of a power of ten; a little room is left at both ends."""
        return f"{1 + 98 * (power - self.low) / (self.high - self.low):.1f}%"


def _error_row(
    svg: ElementTree.Element,
    axis: _Axis,
    top: float,
    name: str,
    row: Iterable[tuple[float, Case, str]],
    runtimes: Sequence[str],
    anchors: Mapping[str, str],
) -> None:
    """Draw the label, which links to the worst case, and a dot for each place and runtime."""
    dots: defaultdict[tuple[str, int], list[tuple[float, Case, str]]] = defaultdict(list)
    for found in row:
        dots[axis.at(_power(found[0])), runtimes.index(found[1].runtime)].append(found)
    share, worst, _ = max((max(d, key=lambda one: one[0]) for d in dots.values()), key=_share_in)
    link = element("a", svg, href=f"#{anchors[worst.id]}")
    element("text", link, clip(f"{name}  {percent(share)}", MAX_LABEL), x="1%", y=top + 12)
    element("line", svg, x1="0", x2="100%", y1=top + 23, y2=top + 23, class_="axis")
    for (x, series), group in dots.items():
        y = top + 23 + 4 * (series - (len(runtimes) - 1) / 2)
        dot = element("circle", svg, cx=x, cy=f"{y:g}", r=3, class_=f"s{series % SERIES}")
        share, case, figure = max(group, key=_share_in)
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        said = f"{case.id}{others}: {figure} {case.figures[figure]}"
        element("title", dot, said)


def _share_in(found: tuple[float, Case, str]) -> float:
    return found[0]


def legend_of(names: Sequence[str]) -> ElementTree.Element:
    """Return the colours of runtimes."""
    legend = element("p")
    for index, name in enumerate(names):
        text = f"\u25cf {name if name != '-' else 'no runtime'}"
        element("span", legend, text, class_=f"key s{index % SERIES}")
    return legend


def size(count: float) -> str:
    """Return a number of bytes as text, in the unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def weights(cases: Iterable[Case]) -> Drawing | None:
    """Draw the weights of each subject as areas: by package, then by the functions that use them.

    The facts are `package N FUNCTION, FUNCTION weight bytes`, which the check `copies` records.
    """
    stored = [(case, found) for case in cases if (found := _stored(case))]
    if not stored:
        return None
    largest = sorted(stored, key=lambda one: -sum(b for p in one[1].values() for b in p.values()))
    figures = []
    for case, packages in largest[:_MAX_SUBJECTS]:
        figure = element("figure")
        figure.append(_areas(packages, f"Weights of {case.fixture} {case.mode}"))
        element("figcaption", figure, f"{case.fixture} {case.mode}: {_shared_text(packages)}")
        figures.append(figure)
    more = len(stored) - len(figures)
    caption = (
        "An area is a number of bytes; a column is a package. Green weights are stored once and "
        "used by all the functions that are named; yellow ones belong to one function."
        + (f" {counted(more, 'smaller subject')} are left out." if more else "")
    )
    return Drawing("weights", "Weights and sharing", caption, markup_of(*figures))


def _stored(case: Case) -> dict[int, dict[str, int]]:
    """Return the bytes of weights by package, and by the functions that use them."""
    packages: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for name, fact in case.facts.items():
        match = _STORED.fullmatch(name)
        if match and match[2] != "used" and isinstance(fact, int) and fact > 0:
            packages[int(match[1])][match[2]] = fact
    return dict(sorted(packages.items())) if case.check == "copies" else {}


def _is_shared(functions: str) -> bool:
    return ", " in functions


def _shared_text(packages: Mapping[int, Mapping[str, int]]) -> str:
    sizes = [(name, count) for package in packages.values() for name, count in package.items()]
    stored = sum(count for _, count in sizes)
    shared = sum(count for name, count in sizes if _is_shared(name))
    saved = sum(count * name.count(", ") for name, count in sizes)
    text = f"{size(stored)} of weights, {100 * shared / stored:.0f} % shared"
    return text + (f"; without sharing {size(stored + saved)}" if saved else "")


def sharing(cases: Iterable[Case]) -> tuple[str, Case] | None:
    """Return a sentence on the weights of the first subject that can share any, and its case."""
    found = [(case, packages) for case in cases if (packages := _stored(case))]
    several = [one for one in found if any(_is_shared(n) for p in one[1].values() for n in p)]
    return next(((_shared_text(p), case) for case, p in several or found), None)


def _areas(packages: Mapping[int, Mapping[str, int]], label: str) -> ElementTree.Element:
    svg = svg_of(150, label)
    total = sum(count for package in packages.values() for count in package.values())
    left = 0.0
    for index, package in packages.items():
        part = sum(package.values())
        column = element("svg", svg, x=f"{left:.2f}%", width=f"{100 * part / total:.2f}%")
        left += 100 * part / total
        top = 0.0
        for functions, count in sorted(package.items(), key=lambda one: -one[1]):
            kind = "shared" if _is_shared(functions) else "own"
            height = 100 * count / part
            block = element("svg", column, y=f"{top:.2f}%", height=f"{height:.2f}%")
            top += height
            area = element("rect", block, width="100%", height="100%", class_=f"block {kind}")
            said = f"package {index}, {functions}: {size(count)}"
            element("title", area, said)
            wide = part / total > 0.12 and height > 14
            if wide:
                element("text", block, f"package {index}", x=6, y=16)
                element("text", block, size(count), x=6, y=31)
                element("text", block, functions, x=6, y=46, class_="dim")
    return svg
