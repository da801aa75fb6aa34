"""The page of a run in a browser: what a reader does with it, and what must not happen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.report.page import MARKS
from harness.results import Run
from harness.suites.page.conftest import THEMES, WIDTHS, Opened

PAGES = ("sound", "broken", "bisected", "long", "matrix")
LIMITS = dict.fromkeys(PAGES, 1_000_000) | {"matrix": 3_000_000}

# What is wrong with the layout: words on two lines, and text that nobody can scroll to.
LAYOUT = """() => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const width = innerWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  const scrolls = box => box && (["auto", "scroll"].includes(getComputedStyle(box).overflowX)
    || scrolls(box.parentElement));
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  let words = 0;
  while (texts.nextNode()) {
    const box = texts.currentNode.parentElement;
    if (box.closest("svg, option, .up")) continue;
    for (const word of texts.currentNode.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].filter(r => r.width).map(r => r.top | 0));
      if (lines.size > 1) found.push("broken: " + word[0]);
      if (range.getBoundingClientRect().right > width + 1 && !scrolls(box))
        found.push("outside: " + word[0]);
      words += 1;
    }
  }
  for (const text of document.querySelectorAll("svg a text"))
    if (text.getBoundingClientRect().right > width + 1) found.push("cut: " + text.textContent);
  return [words, [...new Set(found)].slice(0, 20)];
}"""


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_complaint_and_fits(
    opened: Callable[..., Opened], files: dict[str, Path], name: str, width: int, theme: str
) -> None:
    it = opened(files[name], width, theme)
    open_all(it.page)
    words, found = it.page.evaluate(LAYOUT)
    assert words > 50 and found == []
    assert it.problems == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small(files: dict[str, Path], name: str) -> None:
    assert files[name].stat().st_size < LIMITS[name]


def open_all(page: Any) -> None:
    """Open every case, and let what the page does then end."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_timeout(300)  # "toggle" comes later


def violations(page: Any, **options: Any) -> list[str]:
    """Return what axe, an independent judge of accessibility, complains about."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs `page`")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"], **options})
    return [
        f"{one['id']}: {node['html'][:120]}"
        for one in found.response["violations"]
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", ["sound", "broken", "bisected", "long"])
def test_axe_finds_nothing(
    opened: Callable[..., Opened], files: dict[str, Path], name: str, theme: str
) -> None:
    """Contrast, names of controls, the order of headings, regions that scroll, links."""
    page = opened(files[name], 390, theme).page
    open_all(page)
    assert violations(page) == []


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("dt, th { overflow-wrap: anywhere; max-width: 2rem !important; }", "broken: "),
        ("pre, dd, p, .case, .box { overflow-x: visible !important; }", "outside: "),
        ("main { width: 200vw; }", "the page scrolls sideways"),
    ],
)
def test_a_worse_layout_is_found(
    opened: Callable[..., Opened], files: dict[str, Path], rule: str, wrong: str
) -> None:
    page = opened(files["long"], 390, bypass_csp=True).page
    page.add_style_tag(content=rule)
    assert any(problem.startswith(wrong) for problem in page.evaluate(LAYOUT)[1])


def test_too_little_contrast_is_found(
    opened: Callable[..., Opened], files: dict[str, Path]
) -> None:
    page = opened(files["broken"], bypass_csp=True).page
    page.add_style_tag(content=":root { --dim: #bbb !important; }")
    assert any(said.startswith("color-contrast: ") for said in violations(page))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("openTarget();\n</script>", "openTarget(;\n</script>", "Content Security Policy"),
        ("<main>", "<main onclick='alert(1)'><script>1</script>", "Content Security Policy"),
        ("<main>", "<main><img src='https://example.org/x.png'>", "example.org"),
    ],
)
def test_a_page_that_runs_or_fetches_something_else_is_found(
    opened: Callable[..., Opened],
    files: dict[str, Path],
    tmp_path: Path,
    old: str,
    new: str,
    said: str,
) -> None:
    source = files["broken"].read_text(encoding="utf-8")
    assert old in source
    worse = tmp_path / "worse.html"
    worse.write_text(source.replace(old, new), encoding="utf-8")
    it = opened(worse)
    it.page.wait_for_timeout(200)
    assert any(said in problem for problem in it.problems)


def test_the_first_screen_answers(
    opened: Callable[..., Opened], files: dict[str, Path], runs: dict[str, Run]
) -> None:
    """The verdict, what failed and why, what to do and how to repeat it need no click."""
    page = opened(files["broken"]).page
    (case,) = (case for case in runs["broken"].cases if not case.passes)
    first = page.locator("main").inner_text()
    assert page.locator(".verdict").inner_text().startswith("Failed: 1 of ")
    finding = case.findings[0]
    for text in (finding.code, finding.meaning, finding.place, finding.remedy, "harness check "):
        assert text in first
    box = page.locator("#failures pre").first.bounding_box()
    assert box and box["y"] < 900


def test_the_command_runs_as_printed(
    opened: Callable[..., Opened], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails as the run did: it has the path that was typed."""
    command = opened(files["broken"]).page.locator("#failures pre").first.inner_text()
    harness, *words = shlex.split(command)
    assert harness == "harness" and main(words) == 1
    assert "fail  metadata-names" in capsys.readouterr().out


def test_a_cell_opens_its_case(opened: Callable[..., Opened], files: dict[str, Path]) -> None:
    page = opened(files["sound"]).page
    cell = page.locator(".matrix a.o-pass").last
    anchor = cell.get_attribute("href") or ""
    target = page.locator(f"[id='{anchor[1:]}']")
    assert not target.locator("pre").is_visible()
    cell.click()
    assert target.locator("pre").is_visible()
    assert target.locator("summary").evaluate("one => one === document.activeElement")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0


def test_a_link_to_a_case_opens_it(opened: Callable[..., Opened], files: dict[str, Path]) -> None:
    page = opened(files["sound"]).page
    anchor = page.locator(".case").last.get_attribute("id")
    page.goto(f"{files['sound'].as_uri()}#{anchor}")
    assert page.locator(f"[id='{anchor}'] pre").is_visible()


def test_words_and_outcomes_filter(
    opened: Callable[..., Opened], files: dict[str, Path], runs: dict[str, Run]
) -> None:
    page = opened(files["sound"]).page
    cells = page.locator(".matrix a").count()
    cases, on = page.locator(".case").count(), page.locator(".case:not([data-off])")
    page.locator("input[type=search]").fill("PARITY strict")
    lit = page.locator(".matrix a:not([data-off])")
    labels = lit.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert labels and all("parity" in label and "mil:strict" in label for label in labels)
    said = re.findall(r"[\d,]+", page.locator("output").inner_text())
    found, total = (int(count.replace(",", "")) for count in said)
    assert total == len(runs["sound"].cases) and found >= len(labels)
    counts = page.locator("#passed .group:visible .count").all_inner_texts()
    skips = page.locator("#skipped i:not([data-off])").count()
    assert counts == [f"{len(labels):,}"]
    assert found == len(labels) + skips
    assert page.locator(".matrix tbody tr:visible").count() == 1
    assert 0 < on.count() < cases
    page.locator("input[value=pass]").uncheck()
    assert lit.count() == on.count() == 0
    assert page.locator("output").inner_text() == "no case matches"
    assert page.locator("#passed").is_hidden() and page.locator("#matrix tr").first.is_hidden()
    page.locator("input[value=pass]").check()
    page.locator("input[type=search]").fill("")
    assert (
        lit.count() == cells and on.count() == cases and page.locator("output").inner_text() == ""
    )


def test_the_word_skip_finds_every_skipped_case(
    opened: Callable[..., Opened], files: dict[str, Path], runs: dict[str, Run]
) -> None:
    """Also those that a long list leaves out."""
    page = opened(files["matrix"]).page
    page.locator("input[type=search]").fill("SKIP")
    counts = page.locator("#skipped .group .count").all_inner_texts()
    cases = runs["matrix"].cases
    skips = sum(case.outcome == "skip" for case in cases)
    assert skips > page.locator("#skipped i").count()
    assert sum(int(count.replace(",", "")) for count in counts) == skips
    assert page.locator("output").inner_text() == f"{skips:,} of {len(cases):,} shown"


def test_a_link_to_what_is_filtered_away_shows_it(
    opened: Callable[..., Opened], files: dict[str, Path]
) -> None:
    page = opened(files["sound"]).page
    anchor = page.locator(".case").last.get_attribute("id")
    page.locator("input[type=search]").fill("no such check")
    page.evaluate(f"location.hash = {anchor!r}")
    page.wait_for_timeout(100)
    assert page.locator(f"[id='{anchor}'] pre").is_visible()


@pytest.mark.parametrize("key", ["share", "seconds"])
def test_rows_are_sorted(opened: Callable[..., Opened], files: dict[str, Path], key: str) -> None:
    page = opened(files["sound"]).page
    rows = f"all => all.map(one => Number(one.dataset.{key}))"
    recorded = page.locator(".matrix tbody tr").evaluate_all(rows)
    page.locator("select").select_option(key)
    ordered = page.locator(".matrix tbody tr").evaluate_all(rows)
    assert ordered == sorted(recorded, reverse=True) != recorded
    page.locator("select").select_option("")
    assert page.locator(".matrix tbody tr").evaluate_all(rows) == recorded


def test_the_matrix_is_walked_by_arrows(
    opened: Callable[..., Opened], files: dict[str, Path]
) -> None:
    page = opened(files["sound"]).page
    page.locator(".matrix a").first.focus()
    where = "(one => [one.closest('tr').rowIndex, one.closest('td').cellIndex])"
    row, column = page.evaluate(f"{where}(document.activeElement)")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{where}(document.activeElement)") == [row, column + 1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    lower, left = page.evaluate(f"{where}(document.activeElement)")
    assert lower > row and left == column
    assert page.locator(".matrix a[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    assert "#" in page.url


def test_a_page_is_printed_without_its_controls(
    opened: Callable[..., Opened], files: dict[str, Path]
) -> None:
    page = opened(files["broken"], theme="dark").page
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible()
    assert page.locator("#failures pre").first.is_visible()
    colours = "one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).color]"
    assert page.locator("body").evaluate(colours) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert page.pdf().startswith(b"%PDF")


def test_the_page_reads_without_its_script(
    opened: Callable[..., Opened], files: dict[str, Path]
) -> None:
    page = opened(files["broken"], java_script_enabled=False).page
    assert page.locator("#failures pre").first.is_visible()
    assert not page.locator("#filter").is_visible()


def test_every_mark_of_the_matrix_is_explained(
    opened: Callable[..., Opened], files: dict[str, Path]
) -> None:
    page = opened(files["sound"]).page
    marks = page.locator(".matrix a").evaluate_all("all => all.map(one => one.textContent)")
    legend = page.locator("#matrix > p").inner_text()
    assert marks and all(re.search(rf"{re.escape(mark)} \w+", legend) for mark in set(marks))
    assert set(marks) <= set(MARKS.values())


def test_pictures_are_kept(
    opened: Callable[..., Opened], files: dict[str, Path], pytestconfig: pytest.Config
) -> None:
    folder = pytestconfig.getoption("--screenshots")
    if folder is None:
        pytest.skip("keeps pictures with --screenshots DIR")
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, theme, part in (
        ("broken", 1280, "light", "page-failed"),
        ("sound", 1280, "light", "page-passed"),
        ("sound", 390, "dark", "page-narrow"),
        ("bisected", 1280, "light", "page-bisected"),
    ):
        file = folder / f"{part}.png"
        page = opened(files[name], width, theme).page
        page.locator("#operations" if name == "bisected" else "body").scroll_into_view_if_needed()
        page.screenshot(path=file)
        assert 0 < file.stat().st_size < 300_000
