"""Figures, findings and cases of a run, and their stream (JSON Lines), without torch."""

from harness.results.cases import NOT_APPLICABLE, OUTCOMES, Case, Fact, Finding, case_from_findings
from harness.results.figures import Figure
from harness.results.known import KnownDefect, read_known
from harness.results.machine import Header
from harness.results.stream import Footer, InvalidStream, MissingFooter, Run, Writer, read_run

__all__ = [
    "NOT_APPLICABLE",
    "OUTCOMES",
    "Case",
    "Fact",
    "Figure",
    "Finding",
    "Footer",
    "Header",
    "InvalidStream",
    "KnownDefect",
    "MissingFooter",
    "Run",
    "Writer",
    "case_from_findings",
    "read_known",
    "read_run",
]
