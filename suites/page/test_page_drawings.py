"""The drawings of a page in a browser: each thing in its place, and no chart contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.results import Run
from harness.suites.page.conftest import WIDTHS, Opened

# What is wrong with the drawings: what leaves its drawing, texts over one another, and a chart of
# operations whose colours or mark contradict its bound.
DRAWN = """() => {
  const all = (what, root) => [...root.querySelectorAll(what)], found = [];
  const box = one => one.getBoundingClientRect();
  const middle = (one, low, high) => (box(one)[low] + box(one)[high]) / 2;
  const overlap = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  const within = (a, b, slack) => a.left >= b.left - slack && a.right <= b.right + slack
    && a.top >= b.top - slack && a.bottom <= b.bottom + slack;
  const drawings = all("main svg[role=group]", document);
  for (const svg of drawings) {
    for (const one of all("text, circle:not(.ring), path", svg))
      if (!within(box(one), box(svg), 2)) found.push("outside: " + one.textContent);
    const texts = all("text", svg).map(one => [one.textContent, box(one)]);
    texts.forEach(([text, a], index) => {
      for (const [other, b] of texts.slice(index + 1))
        if (overlap(a, b, "left", "right") > 1 && overlap(a, b, "top", "bottom") > 4)
          found.push(`over: ${text} / ${other}`);
    });
  }
  for (const dot of all("#errors circle", document))
    for (const [text, a] of all("text", dot.closest("svg")).map(one => [one.textContent, box(one)]))
      if (overlap(a, box(dot), "left", "right") > 0 && overlap(a, box(dot), "top", "bottom") > -4
        && text !== "off scale \u2192") found.push("near: " + text);
  for (const name of all(".names p", document)) {
    const area = box(name.closest("svg").querySelector("rect"));
    if (!within(box(name), area, 1)) found.push("name: " + name.textContent);
  }
  const charts = all("#operations svg", document).filter(one => one.querySelector(".bound"));
  for (const svg of charts) {
    const bound = middle(svg.querySelector(".bound"), "top", "bottom");
    const dots = all("circle:not(.ring)", svg), marks = all("circle.ring", svg);
    const over = dots.filter(one => middle(one, "top", "bottom") < bound - 1);
    for (const dot of dots)
      if (over.includes(dot) !== dot.classList.contains("over"))
        found.push("colour: " + dot.textContent);
    if (marks.length !== (over.length ? 1 : 0)) found.push("marks: " + marks.length);
    if (!over.length || !marks.length) continue;
    const left = one => middle(one, "left", "right");
    const first = over.reduce((a, b) => left(a) <= left(b) ? a : b);
    const said = svg.querySelector(".bad").textContent;
    const named = said.replace(/^first: /, "").replace(/\u2026$/, "");
    if (Math.abs(left(first) - left(marks[0])) > 1 || !first.textContent.startsWith(named))
      found.push("named: " + named);
  }
  return [drawings.length, [...new Set(found)].slice(0, 20)];
}"""
LEAST = {"sound": 3, "bisected": 4, "long": 4, "matrix": 3}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LEAST)
def test_drawings_keep_their_places(
    opened: Callable[..., Opened], files: dict[str, Path], name: str, width: int
) -> None:
    drawings, found = opened(files[name], width).page.evaluate(DRAWN)
    assert drawings >= LEAST[name] and found == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("$('circle.ring').remove()", "marks: 0"),
        ("$('circle.over').setAttribute('class', 's0')", "colour: "),
        ("$('circle.s0').setAttribute('cy', '20')", "colour: "),
        ("$('circle.over').setAttribute('cx', '120%')", "outside: "),
        ("$('circle.ring').setAttribute('cx', '20%')", "named: "),
        ("$('.bad').textContent = 'first: gelu'", "named: "),
        ("all('text.dim').forEach(text => text.setAttribute('y', 50))", "over: "),
        (
            "all('a text').forEach(text => text.setAttribute('y', +text.getAttribute('y') + 4))",
            "near: ",
        ),
        ("all('.names p').forEach(name => { name.style.width = '150%'; })", "name: "),
    ],
)
def test_a_worse_drawing_is_found(
    opened: Callable[..., Opened], files: dict[str, Path], change: str, wrong: str
) -> None:
    page = opened(files["long"], 390, bypass_csp=True).page
    page.evaluate(
        "const all = what => document.querySelectorAll("
        "`#operations ${what}, #weights ${what}, #errors ${what}`),"
        f" $ = what => all(what)[0]; {change}"
    )
    assert any(problem.startswith(wrong) for problem in page.evaluate(DRAWN)[1])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_screen_says_which_layer_diverges_first(
    opened: Callable[..., Opened], files: dict[str, Path], runs: dict[str, Run], width: int
) -> None:
    page = opened(files["bisected"], width).page
    named = page.locator(".highlights a[href='#operations']")
    place = named.bounding_box()
    assert place is not None and place["y"] < 900
    case = next(case for case in runs["bisected"].cases if not case.passes)
    assert case.profile is not None and case.profile.first is not None
    assert case.profile.first.operation == "sigmoid" and "layer 1" in named.inner_text()
    named.click()
    assert page.locator("#operations .bad").first.is_visible()
    assert (
        page.locator("#operations figcaption").first.inner_text().count("is layer 1, sigmoid ") == 1
    )
