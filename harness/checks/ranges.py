"""Activations that fp16 cannot hold; `harness.mil.ranges` says why and how they are seen."""

from __future__ import annotations

from collections.abc import Iterator

from harness.checks.parity import prompt_length, sequence, trace
from harness.mil import observed
from harness.mil.ranges import LARGEST, RangeMonitor
from harness.results import Figure, Finding
from harness.subject import Subject


def check_fp16_range(subject: Subject) -> Iterator[Finding]:
    """Run the subject's sequence in `widen`: no FLOAT16 result may exceed fp16's largest value."""
    monitor = RangeMonitor()
    tokens = sequence(subject)
    with observed(monitor):
        trace(subject.session("mil:widen"), tokens, prompt_length(subject))
    rows = list(monitor.ranges.values())
    over = [row for row in rows if row.peak > LARGEST]
    first = f"the first is {over[0].where}, which reaches {over[0].peak:.4g}" if over else ""
    figures = {"largest activation": max((row.peak for row in rows), default=0.0)}
    squares = [row.square_margin for row in rows if row.square_margin is not None and row.nonzero]
    if squares:
        figures["margin of squares"] = min(squares)
    yield Finding(
        "fp16-range",
        "activations",
        ok=not over,
        message=f"{len(over)} of {len(rows)} operations exceed fp16's {LARGEST:.0f}; {first}",
        comparisons=len(rows),
        figures={name: Figure(value) for name, value in figures.items()},
        facts={"operations over fp16": len(over)},
    )
