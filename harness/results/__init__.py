"""What a run records: figures, findings, cases, and their stream (JSON Lines). No torch."""

from harness.results.figures import Figure
from harness.results.findings import Finding, case_from_findings
from harness.results.outcomes import OUTCOMES
from harness.results.records import NOT_APPLICABLE, Case, Footer, Header, Run
from harness.results.stream import InvalidStream, MissingFooter, Writer, read_run

__all__ = [
    "NOT_APPLICABLE",
    "OUTCOMES",
    "Case",
    "Figure",
    "Finding",
    "Footer",
    "Header",
    "InvalidStream",
    "MissingFooter",
    "Run",
    "Writer",
    "case_from_findings",
    "read_run",
]
