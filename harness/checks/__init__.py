"""The checks, by name: facts and predictions in, findings out."""

from __future__ import annotations

from harness.checks.registry import CHECKS, Check

__all__ = ["CHECKS", "Check"]
