"""Two artefacts of one model, by two exporters: called in one way, they give the same numbers.

Each is judged against the oracle already; here one is held against the other. So what the oracle
cannot see, because it takes a value from the artefact (the norms' epsilon), is seen as well.

Where more precision is carried than the artefact has, parity's bound is kept: 1e-5 of the largest
logit. Where a runtime rounds as the artefact does, each of the two may be off by twice what eager
PyTorch is off, and independent errors add up by their squares: their difference may be the root of
two larger. How it compares with eager's error itself is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from math import isfinite

from harness.checks.finding import Finding
from harness.checks.metrics import Error, error
from harness.checks.parity import (
    CALIBRATED_MULTIPLE,
    WIDE_TOLERANCE,
    Trace,
    measure,
    prompt_length,
    sequence,
    tolerances,
    trace,
)
from harness.checks.subject import Subject
from harness.generate.layout import ModelLayout
from harness.report.figures import Figure

_OF_TWO = 2**0.5
# Of a layout: the tables may differ in rounding, and the logits show it; known.toml has the rows.
_NOT_COMPARED = ("freqs_cos", "freqs_sin", "crossed_rows")


def agreement(subject: Subject, other: Subject, runtime: str) -> Iterator[Finding]:
    """Compare ``subject`` with ``other``, an export of the same checkpoint with the same options.

    Teacher forced, as parity: prefill in chunks, decode step by step, logits and caches. The
    difference is taken relative to the largest value of ``other``.
    """
    layouts = subject.session(runtime).layout, other.session(runtime).layout
    interface = _interface(*layouts)
    yield interface
    if not interface.ok:  # what is called in another way cannot be given the same calls
        return
    _, have, _ = measure(subject, runtime)
    want = trace(other.session(runtime), sequence(subject), prompt_length(subject))
    allowed = tolerances(subject, runtime)
    for part, found in _differences(have, want).items():
        rounded = allowed[part] > WIDE_TOLERANCE
        bound = allowed[part] * (_OF_TWO if rounded else 1.0)
        figures = {f"{part} difference": Figure(found.relative, "", bound=bound)}
        if rounded:
            eager = allowed[part] / CALIBRATED_MULTIPLE
            figures[f"{part} difference over eager's error"] = Figure(found.relative / eager)
        yield Finding("agreement", part, comparisons=found.count, figures=figures)


def _interface(ours: ModelLayout, theirs: ModelLayout) -> Finding:
    names = [field.name for field in fields(ModelLayout) if field.name not in _NOT_COMPARED]
    differing = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    shown = "; ".join(f"{n} is {getattr(ours, n)}, not {getattr(theirs, n)}" for n in differing)
    return Finding(
        "agreement",
        "interface",
        ok=not differing,
        message=f"the two are not called in one way: {shown}",
        comparisons=len(names),
    )


def _differences(have: Trace, want: Trace) -> dict[str, Error]:
    """The difference of each part; that of the caches is the largest of any layer's."""
    split = want.n_prefill
    pairs = zip((*have.keys, *have.values), (*want.keys, *want.values), strict=True)
    return {
        "prefill": error(have.logits[:split], want.logits[:split]),
        "decode": error(have.logits[split:], want.logits[split:]),
        "caches": max((error(h, w) for h, w in pairs), key=_badness),
    }


def _badness(found: Error) -> tuple[bool, float]:
    return not isfinite(found.relative), found.relative  # NaN compares with nothing
