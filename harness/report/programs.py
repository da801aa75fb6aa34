"""Draws what is inside of programs as inline SVG: their weights, and their operations' errors."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from xml.etree import ElementTree

from harness.report.drawings import (
    Axis,
    Drawing,
    add_wrapped,
    axis_over,
    element,
    markup_of,
    percent,
    power_of,
    svg_of,
)
from harness.results import Case, OperationError
from harness.text import clip, counted

_MAX_CHARTS = 8
_DOTS, _LAYERS = 160, 60  # of a chart
_CHART, _TOP = 130, 20  # pixels
_LEFT, _WIDTH = 11.0, 88.0  # percent
_MAX_NAMED = 46  # letters of the first operation beyond its bound, which are bold
_LARGEST = 9  # power of ten: a wrong value is a million times off where 1e-7 is allowed
_LETTER = 2.0  # percent of a narrow screen
_MAX_SUBJECTS = 12
_STORED = re.compile(r"package (\d{1,9}) (.+) weight bytes")
_NARROWEST = 0.1  # part of all weights that has names on its area
_AREA, _LINE = 150, 15  # pixels: of the weights of a subject, of a line of text


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
        said = f"{case.fixture} {case.mode}: {_shared_text(packages)}"
        add_wrapped(element("figcaption", figure), said)
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
    svg = svg_of(_AREA, label)
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
            element("title", area, f"package {index}, {functions}: {size(count)}")
            who = "shared by" if _is_shared(functions) else "only"
            lines = [f"{size(count)}", f"{who} {functions}", f"package {index}"]
            fit = int((_AREA * height / 100 - 4) // _LINE)
            if fit > 0 and part / total >= _NARROWEST:
                names = element("foreignObject", block, width="100%", height="100%", class_="names")
                for text in lines[:fit]:
                    element("p", names, text)
    return svg


def operations(cases: Sequence[Case], anchors: Mapping[str, str]) -> Drawing | None:
    """Draw the error of each operation of a bisection in the order of their execution.

    A chart is a method of a program; the first operation beyond its bound is marked and named.
    `anchors` has the page's anchor of each case by its id.
    """
    charts = [
        (case, part, list(found))
        for case in cases
        if case.profile
        for part, found in groupby(case.profile.operations, lambda one: _method(one.place))
    ]
    if not charts:
        return None
    wrong_first = sorted(charts, key=lambda row: not any(one.is_beyond for one in row[2]))
    figures = [
        _chart(case, part, found, anchors[case.id])
        for case, part, found in wrong_first[:_MAX_CHARTS]
    ]
    more = len(charts) - len(figures)
    left_out = sum(case.profile.left_out for case in cases if case.profile)
    caption = (
        "From left to right, the operations in the order of their execution, layer by layer; a dot "
        "is the error of an operation as a share of what is allowed. Above the red line it is too "
        "large: the ring marks the first one, which makes the error and does not inherit it."
        + (f" {counted(more, 'more method')} are left out." if more else "")
        + (
            f" {counted(left_out, 'operation')} of the smallest errors have no dot."
            if left_out
            else ""
        )
    )
    title, markup = "Errors by layer and operation", markup_of(*figures)
    return Drawing("operations", title, caption, markup, leads=True)


def first_beyond(cases: Iterable[Case]) -> str:
    """Return the first operation of a bisection that is beyond its bound; "" without one."""
    profiles = [case.profile for case in cases if case.profile]
    first = next(filter(None, (profile.first for profile in profiles)), None)
    return f"{first.name}, {_method(first.place)}" if first else ""


def _method(place: str) -> str:
    """Return the method, or the function of a package, of a place, without the delegate."""
    return place.partition(", delegate ")[0]


def _chart(
    case: Case, part: str, found: Sequence[OperationError], anchor: str
) -> ElementTree.Element:
    figure = element("figure")
    caption = element("figcaption", figure)
    shares = [(i, one.error) for i, one in enumerate(found) if one.error is not None]
    if shares and case.profile:
        element("p", figure, f"The error is {case.profile.measure}:", class_="dim")
        label = f"Share of the allowed error, {case.check}, {part}"
        figure.append(_dots(label, found, shares, "bound"))
    totals = [(i, one.total) for i, one in enumerate(found) if one.total is not None]
    if totals:
        element("p", figure, "The error so far, over the size of the result:", class_="dim")
        figure.append(_dots(f"Error so far, {part}", found, totals, "1"))
    place = " ".join(name for name in (case.fixture, case.mode, case.runtime) if name != "-")
    add_wrapped(element("a", caption, href=f"#{anchor}"), f"{case.check}, {part}")
    add_wrapped(caption, f" of {place}: {counted(len(found), 'operation')}; {_said(found)}")
    return figure


def _said(found: Sequence[OperationError]) -> str:
    """Return a sentence on the first operation beyond its bound, or on the nearest to its bound."""
    first = next((one for one in found if one.is_beyond), None)
    if first is not None:
        beyond = first.error or math.inf
        size = percent(beyond) if math.isfinite(beyond) else "infinitely many times"
        of = " of" if size.endswith("%") else ""
        return f"the first beyond its bound is {first.name}: {size}{of} what is allowed"
    known = [one for one in found if one.error is not None]
    if not known:
        return "no error was measured"
    worst = max(known, key=lambda one: one.error or 0)
    return (
        f"none is beyond its bound; {worst.name} is nearest, with {percent(worst.error or 0)} of it"
    )


def _dots(
    label: str,
    found: Sequence[OperationError],
    values: Sequence[tuple[int, float]],
    top: str,
) -> ElementTree.Element:
    """Draw values over the index of their operations, on a logarithmic axis.

    `top` names the line at 1: "bound", beyond which operations are marked, or the size of a result.
    """
    svg = svg_of(_TOP + _CHART + 20, label)
    powers = [power_of(value, _LARGEST) for _, value in values if value] or [0.0]
    axis = axis_over(powers)  # what has no error lies at its lower end
    for power in range(axis.low, axis.high + 1):
        y = _height(axis, power)
        kind = "bound" if power == 0 and top == "bound" else "axis"
        element("line", svg, x1=f"{_LEFT}%", x2="100%", y1=y, y2=y, class_=kind)
        if power % axis.step == 0 or power == 0:
            text = top if power == 0 else f"1e{power}"
            element("text", svg, text, x=0, y=float(y) + 4, class_="dim")
    _layers(svg, found)
    first = next((i for i, one in enumerate(found) if one.is_beyond), None)
    largest: dict[int, tuple[int, float]] = {}  # of the operations that share a dot
    for index, value in values:
        dot = index * _DOTS // len(found)
        known = largest.get(dot)
        if known is None or (known[0] != first and (index == first or not value <= known[1])):
            largest[dot] = index, value
    for index, value in largest.values():
        x, y = _place(index, len(found)), _height(axis, max(power_of(value, _LARGEST), axis.low))
        wrong = found[index].is_beyond
        made = element("circle", svg, cx=x, cy=y, r=2.5, class_="over" if wrong else "s0")
        element("title", made, f"{found[index].name}: {percent(value)}")
        if index == first and top == "bound":
            element("circle", svg, cx=x, cy=y, r=8, class_="ring")
            element("line", svg, x1=x, x2=x, y1=_TOP, y2=y, class_="ring")
            text = clip(f"first: {found[index].name}", _MAX_NAMED)
            element("text", svg, text, x=0, y=12, class_="bad")
    return svg


def _layers(svg: ElementTree.Element, found: Sequence[OperationError]) -> None:
    """Draw a line at the start of each layer, and its name where there is room."""
    index, free = 0, _LEFT
    runs = [(layer, len(list(group))) for layer, group in groupby(found, lambda one: one.layer)]
    for layer, count in runs[: _LAYERS if len(runs) > 1 else 0]:
        start, width = _LEFT + _WIDTH * index / len(found), _WIDTH * count / len(found)
        index += count
        x, text = f"{start:.2f}%", clip(layer.removeprefix("layer "), 9)
        element("line", svg, x1=x, x2=x, y1=_TOP, y2=_TOP + _CHART, class_="axis")
        end = start + _LETTER * (len(text) + 1)
        if start >= free and width >= _LETTER and end <= 100:
            free = end
            element("text", svg, text, x=x, y=_TOP + _CHART + 15, class_="dim")
    if len(runs) > 1:
        element("text", svg, "layer", x=0, y=_TOP + _CHART + 15, class_="dim")


def _place(index: int, count: int) -> str:
    return f"{_LEFT + _WIDTH * index / max(count - 1, 1):.2f}%"


def _height(axis: Axis, power: float) -> str:
    return f"{_TOP + _CHART * (axis.high - power) / (axis.high - axis.low):.1f}"
