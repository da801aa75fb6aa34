"""Draws errors of a run as inline SVG: beside their bounds, and how many logits have which.

Horizontal places are percentages, so that a drawing fits any width and its text keeps its size.
Colours are classes of `page.css`; the page's policy allows no style attribute.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from harness.results import Case, Figure, Histogram
from harness.text import clip, counted, printable

if TYPE_CHECKING:
    from markupsafe import Markup

SERIES = 6  # colours of page.css
MAX_ROWS = 60  # of a drawing
_SMALLEST = -9  # power of ten at the left end of the axis of errors
_LARGEST = 3  # power of ten at its right end
MAX_LABEL = 56  # letters
ROW, TOP = 34, 26  # pixels
_FIRST_DOT, _LANE = 23, 4  # pixels: below the top of a row, between the dots of two runtimes
_BARS = 30  # pixels
_MAX_HISTOGRAMS = 24
_MAX_DIGITS = 1e9  # a larger number is shown as a power of ten
_LEAST_BAR = 0.08  # of the highest bar: one value of a million is seen, too

# A word longer than this may break after its punctuation; a shorter one, such as 2e-07, never.
_LONG_WORD = re.compile(r"\S{13,}")
_AFTER_PUNCTUATION = re.compile(r"(?<=[^\w\s])(?=\w)|(?<=_)(?=[^\W_])")


@dataclass(frozen=True)
class Drawing:
    """A drawing of a page: its anchor, its title, a sentence on how to read it, and its SVG.

    One that `leads` comes before the table of all checks.
    """

    anchor: str
    title: str
    caption: str
    markup: Markup
    leads: bool = False


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


def pieces(value: object) -> list[str]:
    """Return the parts of a text between which a line may end beside its spaces."""
    text = _LONG_WORD.sub(
        lambda word: _AFTER_PUNCTUATION.sub("\0", word.group()), printable(str(value))
    )
    return text.split("\0")


def add_wrapped(parent: ElementTree.Element, text: str) -> None:
    """Add a text after what an element holds; a line may end within its long words."""
    first, *rest = pieces(text)
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + first
    else:
        parent.text = (parent.text or "") + first
    for piece in rest:
        element("wbr", parent).tail = piece


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
    if share < 10:
        return f"{100 * share:.3g} %"
    return f"{share:.3g} times" if share >= _MAX_DIGITS else f"{float(f'{share:.3g}'):,.0f} times"


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
    runtimes = runtimes_of(cases)
    drawn = {case.runtime for row in rows.values() for _, case, _ in row}
    worst_first = sorted(rows.items(), key=lambda row: -max(s for s, _, _ in row[1]))
    shown = worst_first[:MAX_ROWS]
    powers = [power_of(share) for _, row in shown for share, _, _ in row]
    axis = axis_over(powers)
    lanes = [name for name in runtimes if name in drawn]
    height = ROW + _LANE * (len(lanes) - 1)
    svg = svg_of(TOP + height * len(shown) + 6, "Share of its bound that each figure takes")
    draw_axis(svg, axis)
    for number_, (name, row) in enumerate(shown):
        _error_row(svg, axis, TOP + height * number_, name, row, runtimes, lanes, anchors)
    more = len(worst_first) - len(shown)
    caption = (
        "Each dot is a case; right of the red line a figure misses its bound. The axis is "
        "logarithmic: at 1e-2, a figure takes a hundredth of its bound."
        + (f" {counted(more, 'more figure')} are farther from their bounds." if more else "")
    )
    return Drawing(
        "errors", "Errors against bounds", caption, markup_of(legend_of(runtimes, drawn), svg)
    )


def power_of(share: float, largest: int = _LARGEST) -> float:
    """Return the power of ten of a share of a bound, within the ends of an axis; NaN is largest."""
    if math.isnan(share):
        return largest
    return min(max(math.log10(share), _SMALLEST), largest) if share > 0 else _SMALLEST


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis between two powers of ten."""

    low: int
    high: int

    @property
    def step(self) -> int:
        """The distance of two labels, in powers of ten."""
        return 1 if self.high - self.low <= 6 else 2

    def at(self, power: float) -> str:
        """Return the place of a power of ten; a little room is left at both ends."""
        return f"{self.share(power):.1f}%"

    def share(self, power: float) -> float:
        """Return the place of a power of ten in percent."""
        return 1 + 98 * (power - self.low) / (self.high - self.low)


def axis_over(powers: Sequence[float]) -> Axis:
    """Return the axis that holds these powers of ten, the bound at 0, and one above it."""
    return Axis(min(0, math.floor(min(powers))), max(1, math.ceil(max(powers))))


def draw_axis(svg: ElementTree.Element, axis: Axis) -> None:
    """Draw the lines of an axis with their powers of ten, and the bound."""
    for power in range(axis.low, axis.high + 1):
        x = axis.at(power)
        kind = "bound" if power == 0 else "axis"
        element("line", svg, x1=x, x2=x, y1=18, y2="100%", class_=kind)
        if power % axis.step == 0:
            anchor = "end" if power == axis.high else "start" if power == axis.low else "middle"
            text = "bound" if power == 0 else f"1e{power}"
            element("text", svg, text, x=x, y=12, class_="dim", text_anchor=anchor)


def _error_row(
    svg: ElementTree.Element,
    axis: Axis,
    top: float,
    name: str,
    row: Iterable[tuple[float, Case, str]],
    runtimes: Sequence[str],
    lanes: Sequence[str],
    anchors: Mapping[str, str],
) -> None:
    """Draw the label, which links to the worst case, and a dot for each place and runtime.

    The dots of a runtime have a lane, in the order of `lanes`.
    """
    dots: defaultdict[tuple[str, str], list[tuple[float, Case, str]]] = defaultdict(list)
    for found in row:
        dots[axis.at(power_of(found[0])), found[1].runtime].append(found)
    worst_share, worst, _ = max((max(d, key=_share_in) for d in dots.values()), key=_share_in)
    middle = top + _FIRST_DOT + _LANE * (len(lanes) - 1) / 2
    link = element("a", svg, href=f"#{anchors[worst.id]}")
    element("text", link, clip(f"{name}  {percent(worst_share)}", MAX_LABEL), x="1%", y=top + 12)
    element("line", svg, x1="0", x2="100%", y1=middle, y2=middle, class_="axis")
    for (x, runtime), group in dots.items():
        y = top + _FIRST_DOT + _LANE * lanes.index(runtime)
        series = f"s{runtimes.index(runtime) % SERIES}"
        dot = element("circle", svg, cx=x, cy=f"{y:g}", r=3, class_=series)
        _, case, figure = max(group, key=_share_in)
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        said = f"{case.id}{others}: {figure} {case.figures[figure]}"
        element("title", dot, said)
    if not worst_share <= 10.0**_LARGEST:
        element(
            "text", svg, "off scale \u2192", x="97%", y=middle + 7, text_anchor="end", class_="bad"
        )


def _share_in(found: tuple[float, Case, str]) -> float:
    return found[0]


def runtimes_of(cases: Iterable[Case]) -> list[str]:
    """Return the runtimes of a page in the order of their colours, which all its drawings share.

    Those of cases that were skipped come last: they are in no drawing.
    """
    ran = {case.runtime for case in cases if case.outcome != "skip"}
    return sorted(ran) + sorted({case.runtime for case in cases} - ran)


def legend_of(runtimes: Sequence[str], drawn: Container[str]) -> ElementTree.Element:
    """Return the colours of those runtimes that are drawn."""
    legend = element("p")
    for index, name in ((i, name) for i, name in enumerate(runtimes) if name in drawn):
        text = f"\u25cf {name if name != '-' else 'no runtime'}"
        element("span", legend, text, class_=f"key s{index % SERIES}")
    return legend


def histograms(cases: Sequence[Case], anchors: Mapping[str, str]) -> Drawing | None:
    """Draw how many logits have an error of each size, beside the largest that is allowed.

    `anchors` has the page's anchor of each case by its id.
    """
    found = [
        (case, name, one) for case in cases for name, one in case.histograms.items() if one.total
    ]
    if not found:
        return None
    shown = sorted(found, key=lambda row: -row[2].worst)[:_MAX_HISTOGRAMS]
    ends = [power for *_, one in shown for power in (one.first, one.first + len(one.counts))]
    axis = axis_over([power * math.log10(2) for power in ends])
    svg = svg_of(TOP + (_BARS + 20) * len(shown), "Number of logits by the size of their error")
    draw_axis(svg, axis)
    runtimes, drawn = runtimes_of(cases), {case.runtime for case, *_ in found}
    for number_, (case, name, one) in enumerate(shown):
        top = TOP + (_BARS + 20) * number_
        link = element("a", svg, href=f"#{anchors[case.id]}")
        said = _spread(one)
        place = f"{name.removesuffix(' logits')}, {case.fixture} {case.mode}"
        label = f"{clip(place, MAX_LABEL - len(said) - 2)}: {said}"
        element("text", link, label, x="1%", y=top + 12)
        _bars(svg, axis, top + 16, one, f"s{runtimes.index(case.runtime) % SERIES}")
    more = len(found) - len(shown)
    caption = (
        "A bar is the number of logits whose error lies between a power of two and the next, as a "
        "share of the largest error that is allowed, the red line."
        + (f" {counted(more, 'histogram')} with smaller errors are left out." if more else "")
    )
    return Drawing(
        "logits", "Errors of logits", caption, markup_of(legend_of(runtimes, drawn), svg)
    )


def _spread(one: Histogram) -> str:
    """Return how large the errors of half of the values are, and of all."""
    if one.lost:
        return f"{one.lost:,} are not finite"
    if not one.worst:
        return "all exact"
    half = one.below(0.5)
    return f"half {f'< {percent(half)}' if half else 'exact'}, all < {percent(one.worst)}"


def _bars(svg: ElementTree.Element, axis: Axis, top: float, one: Histogram, series: str) -> None:
    """Draw the bars of a histogram; what is beyond the bound, or not finite, is red."""
    digit, bins = math.log10(2), len(one.counts)
    left, right = (axis.share(power * digit) for power in (one.first, one.first + bins))
    box: dict[str, Any] = {"y": f"{top:g}", "height": _BARS}
    inner = element(
        "svg",
        svg,
        x=f"{left:.2f}%",
        width=f"{right - left:.2f}%",
        **box,
        viewBox=f"0 0 {bins or 1} 1",
        preserveAspectRatio="none",
    )
    ranges = ((2.0**power, count) for power, count in enumerate(one.counts, one.first) if count)
    listed = "; ".join(f"{count:,} from {percent(share)}" for share, count in ranges)
    element("title", inner, f"{one.total:,} logits, {one.exact:,} without an error; {listed}")
    beyond = max(0, -one.first)  # the index of the first bar at the bound or above
    for kind, indices in ((series, range(min(beyond, bins))), ("over", range(beyond, bins))):
        tall = {i: one.counts[i] / max(one.counts) for i in indices if one.counts[i]}
        path = "".join(f"M{i} 1V{1 - max(h, _LEAST_BAR):.3f}h1V1z" for i, h in tall.items())
        if path:
            element("path", inner, d=path, class_=kind)
    if one.lost:
        element("rect", svg, x="98%", width="2%", **box, class_="over")
