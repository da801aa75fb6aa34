"""Draws a run: a table for the terminal, JUnit XML and an HTML page. No torch."""

from harness.report.draw import write_report
from harness.report.table import run_table

__all__ = ["run_table", "write_report"]
