"""The result stream (JSON Lines and its schema), and what is drawn from it. No torch."""

from harness.report.draw import write_report
from harness.report.figures import Figure
from harness.report.findings import case_from_findings
from harness.report.outcomes import OUTCOMES
from harness.report.records import NOT_APPLICABLE, Case, Footer, Header, Run
from harness.report.stream import InvalidStream, MissingFooter, Writer, read_run
from harness.report.table import run_table

__all__ = [
    "NOT_APPLICABLE",
    "OUTCOMES",
    "Case",
    "Figure",
    "Footer",
    "Header",
    "InvalidStream",
    "MissingFooter",
    "Run",
    "Writer",
    "case_from_findings",
    "read_run",
    "run_table",
    "write_report",
]
