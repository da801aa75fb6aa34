"""The checks of artifacts, and `run_check`, which makes a case of a check's findings.

To add a check: write a generator of findings with `@check(NAME)` in the module of its theme, and
add to `suites/mutants` the broken artifact that it must catch.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.checks.run import Check, check, defined_in, run_check

if TYPE_CHECKING:
    from harness.subject import Subject

__all__ = ["Check", "artifact_checks", "check", "core_ml_checks", "run_check", "value_checks"]


@cache
def artifact_checks() -> dict[str, Check[Subject]]:
    """Return every check of an artifact by name, in the order in which they run.

    This call imports their modules, which import torch.
    """
    from harness.checks import (
        containers,
        contract,
        execution,
        metadata,
        parity,
        program,
        roles,
        weights,
    )

    # Those that execute come last: what the others find explains their failures.
    return defined_in(metadata, contract, containers, program, weights, roles, parity, execution)


@cache
def value_checks() -> dict[str, Check[Subject]]:
    """Return the checks against an eager module or a golden file, by name, in their order."""
    from harness.checks import outputs

    return defined_in(outputs)


@cache
def core_ml_checks() -> dict[str, Check[Subject]]:
    """Return the checks of Core ML itself by name: ours against it, its times and placement."""
    from harness.checks import core_ml

    return defined_in(core_ml)
