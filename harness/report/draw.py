"""The files that are drawn from a run: a table, JUnit XML and a page."""

from __future__ import annotations

from pathlib import Path

from harness.files import write_whole
from harness.report.junit import junit_xml
from harness.report.page import html_page
from harness.report.table import run_table
from harness.results import Run

DRAWINGS = {
    "table.txt": lambda run: run_table(run) + "\n",
    "junit.xml": junit_xml,
    "index.html": html_page,
}


def write_report(run: Run, folder: Path) -> list[Path]:
    """Write `table.txt`, `junit.xml` and `index.html` into a folder; returns their paths.

    Raises HarnessError when the folder or a file cannot be written.
    """
    return [write_whole(Path(folder) / name, draw(run)) for name, draw in DRAWINGS.items()]
