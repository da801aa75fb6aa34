"""Checks that two exporters' artifacts of one model compute the same numbers for the same calls.

Other checks compare each artifact with the oracle; this one compares the two with each other. It
finds errors that the oracle cannot see, in values that it takes from the artifact, such as the
norms' epsilon.

The bounds are parity's: 1e-5 of the largest logit if the runtime computes with more precision than
the artifact, and twice the error of eager PyTorch if it rounds as the artifact does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from math import isfinite

import torch

from harness.checks.accuracy import (
    Error,
    Trace,
    error,
    measure,
    noise_floor,
    prompt_length,
    sequence,
    tolerances,
    trace,
)
from harness.checks.run import Check
from harness.errors import HarnessError
from harness.generate.layout import ModelLayout
from harness.generate.session import Session
from harness.models.model import Freqs, table_error
from harness.results import Figure, Finding
from harness.subject import Subject

_NOT_COMPARED = ("freqs_cos", "freqs_sin", "crossed_rows")  # of a layout; see the tables below


def agreement_with(other: Callable[[], Subject]) -> Check[Subject]:
    """Return a check that a subject agrees with another one, which `other` opens on demand."""

    def find(subject: Subject, runtime: str) -> Iterator[Finding]:
        return _agreement(subject, other(), runtime)

    return Check("agreement", find, takes_runtime=True)


def _agreement(subject: Subject, other: Subject, runtime: str) -> Iterator[Finding]:
    """Compare `subject` with `other`, an export of the same checkpoint with the same options.

    As in parity, both are teacher forced: prefill in chunks, decode step by step, logits and
    caches. Both use the subject's RoPE tables, which `_tables` compares separately: a table that is
    rounded in another way (angles in fp32 or in fp64) changes a key by more than another order of
    summing does. The difference is relative to the largest value of `other`.
    """
    interface = _interface(subject.session(runtime).layout, other.session(runtime).layout)
    yield interface
    if not interface.ok:  # the same calls do not fit both artifacts
        return
    yield _tables(subject.tables, other.tables)
    have = measure(subject, runtime).trace
    session = Session.open(other.artifact, runtime, subject.tables)
    want = trace(session, sequence(subject), prompt_length(subject))
    allowed = tolerances(subject, runtime)
    for part, found in differences(have, want).items():
        bound = allowed[part]
        difference = Figure(found.relative, "", bound, floor=noise_floor(bound))
        figures = {f"{part} difference": difference}
        yield Finding("agreement", part, comparisons=found.count, figures=figures, code="N25")


def _tables(ours: Freqs, theirs: Freqs) -> Finding:
    """Compare RoPE tables; they may differ by the sum of their errors against exact ones."""
    have, want = torch.stack(ours), torch.stack(theirs)
    over = ((have.double() - want.double()).abs() / table_error(theirs[0])).max()
    return Finding(
        "agreement",
        "tables",
        comparisons=want.numel(),
        figures={"tables difference over allowed": Figure(float(over), "", bound=1.0)},
        facts={"table values that differ": int((have != want).sum())},
        code="N24",
    )


def _interface(ours: ModelLayout, theirs: ModelLayout) -> Finding:
    """Compare all properties of a call: lengths, shapes, dtypes, and the index of every tensor."""
    have, want = _facts(ours), _facts(theirs)
    differing = [
        f"{name} is {have[name]}, not {want[name]}" for name in want if have[name] != want[name]
    ]
    return Finding(
        "agreement",
        "interface",
        ok=not differing,
        message=f"the two are called in different ways: {'; '.join(differing)}",
        comparisons=len(want),
        code="N23",
    )


def _facts(layout: ModelLayout) -> dict[str, object]:
    names = [field.name for field in fields(ModelLayout) if field.name not in _NOT_COMPARED]
    shapes = {"freqs_cos": list(layout.freqs_cos.shape), "freqs_sin": list(layout.freqs_sin.shape)}
    return {name: getattr(layout, name) for name in names} | shapes


Distances = Iterator[tuple[str, Error, float]]
"""What was compared, how far it is from what it must be, and how far it may be."""


def trace_distances(base: Subject, head: Subject, runtime: str) -> Distances:
    """Yield how far HEAD's logits and caches are from BASE's, on the same tokens.

    The bounds are parity's for BASE. Raises HarnessError when the two cannot be called alike.
    """
    sessions = [subject.session(runtime) for subject in (base, head)]
    ours, theirs = (session.layout for session in sessions)
    for what in ("vocab_size", "n_layers", "n_kv_heads", "head_dim"):
        if getattr(ours, what) != getattr(theirs, what):
            values = f"{getattr(ours, what)}, HEAD's {getattr(theirs, what)}"
            raise HarnessError(f"BASE's {what} is {values}: their outputs cannot be compared")
    tokens = sequence(base)[: theirs.context]
    count = min(prompt_length(base), len(tokens))
    want, have = (trace(session, tokens, count) for session in sessions)
    allowed = tolerances(base, runtime)
    for part, found in differences(have, want).items():
        yield part if part == "caches" else f"logits of {part}", found, allowed[part]


def differences(have: Trace, want: Trace) -> dict[str, Error]:
    """Return the difference of each part; that of the caches is the largest of all layers.

    Positions of which one of the two has no logits, or no room in its caches, are left out.
    """
    pairs = zip((*have.keys, *have.values), (*want.keys, *want.values), strict=True)
    rows = ((h, w, min(h.shape[1], w.shape[1])) for h, w in pairs)
    return {
        "prefill": _logits_error(have, want, prefill=True),
        "decode": _logits_error(have, want, prefill=False),
        "caches": max((error(h[:, :n], w[:, :n]) for h, w, n in rows), key=badness),
    }


def _logits_error(have: Trace, want: Trace, prefill: bool) -> Error:
    ours, theirs = (
        {
            position: row
            for number, (position, row) in enumerate(zip(x.positions, x.logits, strict=True))
            if (number < x.n_prefill) == prefill
        }
        for x in (have, want)
    )
    shared = [position for position in ours if position in theirs]
    if not shared:
        part = "prefill" if prefill else "decode"
        raise HarnessError(f"the two give logits of no common position in {part}")
    return error(*(torch.stack([rows[p] for p in shared]) for rows in (ours, theirs)))


def badness(found: Error) -> tuple[bool, float]:
    """Return a key that orders errors from best to worst; NaN compares with nothing."""
    return not isfinite(found.relative), found.relative
