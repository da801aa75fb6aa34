"""Draws a run: a table for the terminal, JUnit XML and an HTML page. No torch.

A drawing is a function from a `Run` to a text. To add one, write it in a module of its own and add
a row to `DRAWINGS`; `harness report` and every suite then write it beside the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.files import partial_file, writing
from harness.report.junit import junit_xml
from harness.report.page import html_page
from harness.report.table import run_table
from harness.results import Run

__all__ = ["DRAWINGS", "run_table", "write_report"]

# file name -> text of a run
DRAWINGS: dict[str, Callable[[Run], str]] = {
    "table.txt": lambda run: run_table(run) + "\n",
    "junit.xml": junit_xml,
    "index.html": html_page,
}


def write_report(run: Run, folder: Path) -> list[Path]:
    """Write every drawing of a run into a folder and return the paths.

    Raises HarnessError when the folder or a file cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        with partial_file(folder / name) as partial:
            partial.write_text(draw(run), encoding="utf-8", newline="\n")
    return [folder / name for name in DRAWINGS]
