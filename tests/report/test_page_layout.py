"""A browser lays the pages out, wide and narrow: no word breaks, and nothing is cut off."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from harness.report import write_report
from harness.report.gate import html_page
from harness.results import Figure, read_run
from tests.report.test_gate_drawings import BETTER, SLOWER, comparison
from tests.results.runs import PARITY, SKIPPED, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")

# The page is in a frame of the wanted width, because its own policy forbids other scripts.
MEASURE = """<iframe style="border:0;width:%dpx;height:900px" srcdoc="%s"></iframe><script>
onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, found = [];
  page.querySelectorAll("details").forEach(one => { one.open = true; });
  const width = frame.contentWindow.innerWidth;
  if (page.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  const scrolls = box => box && (["auto", "scroll"].includes(
    frame.contentWindow.getComputedStyle(box).overflowX) || scrolls(box.parentElement));
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  let words = 0;
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
      const range = page.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].filter(r => r.width).map(r => r.top | 0));
      if (lines.size > 1) found.push("broken: " + word[0]);
      if (range.getBoundingClientRect().right > width + 1
        && !scrolls(texts.currentNode.parentElement)) found.push("outside: " + word[0]);
      words += 1;
    }
  }
  document.body.textContent = "FOUND" + JSON.stringify([words, found]) + "END";
};
</script>"""


def laid_out(page, width, folder):
    """Return the number of words of a page, and what is wrong with their places."""
    file = folder / "frame.html"
    file.write_text(MEASURE % (width, html.escape(page)), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(done.stdout.partition("FOUND")[2].partition("END")[0]))


LONG = replace(
    PARITY,
    check="a-check-with-a-long-name",
    fixture="executorch@1.5.1:matrix-12+b4w",
    outcome="fail",
    reason="layers.0.attention.wq_weight_palettized_to_fp16_by_the_converter differs; " + "x" * 200,
    figures={"decode error": Figure(0.5, "", 1e-5)},
    facts={"sha256": "ab" * 32, "constant decode_kv_cache_specs": "int64[[3,3],[4,4]]" * 30},
)


@pytest.fixture
def pages(tmp_path):
    run = write_run(tmp_path / "run.jsonl", PARITY, SKIPPED, LONG)
    write_report(read_run(run), tmp_path / "out")
    slower = replace(SLOWER, case=f"{LONG.fixture}/multifunction: {LONG.reason}", name=LONG.check)
    return (tmp_path / "out" / "index.html").read_text(), html_page(comparison(slower, BETTER))


@pytest.mark.parametrize("width", [1280, 390])
def test_no_word_breaks_and_nothing_is_cut_off(pages, tmp_path, width):
    for page in pages:
        words, found = laid_out(page, width, tmp_path)
        assert words > 50 and found == []


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("th, td { overflow-wrap: anywhere; max-width: 2rem !important; }", "broken: "),
        ("pre, dd, p, .case, .box { overflow-x: visible !important; }", "outside: "),
    ],
)
def test_a_worse_style_is_found(pages, tmp_path, rule, wrong):
    page = re.sub("style-src '[^']*'", "style-src 'unsafe-inline'", pages[0])
    found = laid_out(page.replace("</style>", f"{rule}</style>"), 390, tmp_path)[1]
    assert any(problem.startswith(wrong) for problem in found)
