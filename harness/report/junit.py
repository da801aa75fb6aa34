"""A run as JUnit XML, for the systems that collect test results."""

from __future__ import annotations

from itertools import groupby
from xml.etree import ElementTree

from harness.results import OUTCOMES, Case, Run
from harness.text import printable

# JUnit's counters, by the element that a case holds.
COUNTERS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def junit_xml(run: Run) -> str:
    """The run as JUnit XML: a test suite per suite, a test case per case.

    `fail` is a failure; `error`, `crash` and `timeout` are errors; `skip` and `known`
    are skipped, with their reason.
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
    """Number of comparisons, figures and facts, a line each."""
    lines = [f"comparisons: {case.comparisons}"]
    lines += [f"{name}: {figure}" for name, figure in case.figures.items()]
    lines += [f"{name}: {fact}" for name, fact in case.facts.items()]
    return "\n".join(lines)
