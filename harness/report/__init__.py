"""Draws a run: a table for the terminal, JUnit XML and an HTML page. No torch.

A drawing is a function from a `Run` to a text. To add one, write it in a module and add a row to
`DRAWINGS`; `harness report` and every suite then write it beside the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from harness.files import partial_file, writing
from harness.report.page import html_page
from harness.report.table import run_table
from harness.results import OUTCOMES, Case, Run
from harness.text import printable

__all__ = ["DRAWINGS", "run_table", "write_report"]

# JUnit's counters, by the element that a case holds.
COUNTERS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def junit_xml(run: Run) -> str:
    """Return the run as JUnit XML: a test suite for each suite, a test case for each case.

    `fail` is a failure; `error`, `crash` and `timeout` are errors; `skip` and `known` are skipped,
    with their reason.
    """
    root = ElementTree.Element("testsuites", name="coreml-llm-harness")
    _count(root, run.cases, run.footer.seconds)
    in_order = sorted(run.cases, key=lambda case: case.suite)
    for suite, group in groupby(in_order, key=lambda case: case.suite):
        cases = tuple(group)
        element = ElementTree.SubElement(
            root, "testsuite", name=printable(suite), timestamp=printable(run.header.started)
        )
        _count(element, cases, sum(case.seconds for case in cases))
        for case in cases:
            _add_case(element, case)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


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


def _count(element: ElementTree.Element, cases: tuple[Case, ...], seconds: float) -> None:
    elements = [OUTCOMES[case.outcome].junit for case in cases]
    element.set("tests", str(len(cases)))
    for attribute, junit in COUNTERS.items():
        element.set(attribute, str(elements.count(junit)))
    element.set("time", f"{seconds:.3f}")


def _add_case(suite: ElementTree.Element, case: Case) -> None:
    element = ElementTree.SubElement(
        suite,
        "testcase",
        classname=printable(f"{case.suite}.{case.check}"),
        name=printable(case.id),
        time=f"{case.seconds:.3f}",
    )
    junit = OUTCOMES[case.outcome].junit
    if junit:
        message = printable(f"{case.outcome}: {case.summary}")
        attributes = {"message": message} | ({} if junit == "skipped" else {"type": case.outcome})
        ElementTree.SubElement(element, junit, attributes)
    output = ElementTree.SubElement(element, "system-out")
    output.text = printable(_details(case), keep="\n")


def _details(case: Case) -> str:
    """Return the comparisons, the figures and the facts, a line each."""
    lines = [f"comparisons: {case.comparisons}"]
    lines += [f"{name}: {figure}" for name, figure in case.figures.items()]
    lines += [f"{name}: {fact}" for name, fact in case.facts.items()]
    return "\n".join(lines)
