"""The checks, by name: facts and predictions in, findings out."""

from __future__ import annotations

from harness.checks.finding import Finding
from harness.checks.registry import CHECKS, Check
from harness.checks.subject import Subject

__all__ = ["CHECKS", "Check", "Finding", "Subject"]
