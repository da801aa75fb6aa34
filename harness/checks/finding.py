"""What a check found at one place. A check returns findings; it never prints and never asserts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.report.figures import Figure
from harness.report.records import Fact


@dataclass(frozen=True)
class Finding:
    """One finding: where it was looked, whether all is well there, and what was compared.

    ``message`` is a sentence when something is wrong. ``comparisons`` counts what was compared; a
    check whose findings compared nothing has not passed. ``facts`` are deterministic, ``figures``
    measured.
    """

    check: str
    where: str
    ok: bool = True
    message: str = ""
    comparisons: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
