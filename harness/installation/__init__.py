"""Checks that an installed ExecuTorch carries the parts of a native runner of Core ML models.

This room imports no torch. Each check takes an `Installation`. To add one: write it with
`@check(NAME)` in the module of its theme, and break a copy of an installation in
`tests/installation`.
"""

from __future__ import annotations

from harness.checks.run import Check, defined_in
from harness.installation import headers, modules, tree
from harness.installation.tree import Installation

INSTALLATION_CHECKS: dict[str, Check[Installation]] = defined_in(tree, modules, headers)
"""Every check of an installation by name, in the order in which they run."""

__all__ = ["INSTALLATION_CHECKS", "Installation"]
