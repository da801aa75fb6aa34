"""Two artifacts of one model, by two exporters: called in one way, they give the same numbers.

Each is judged against the oracle already; here one is held against the other. So what the oracle
cannot see, because it takes a value from the artifact (the norms' epsilon), is seen as well.

The bounds are parity's: 1e-5 of the largest logit where more precision is carried than the artifact
has, and twice what eager PyTorch is off where a runtime rounds as the artifact does.
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
    prompt_length,
    sequence,
    tolerances,
    trace,
)
from harness.checks.run import Check
from harness.checks.weights import table_error
from harness.generate.layout import ModelLayout
from harness.generate.session import open_session
from harness.models.model import Freqs
from harness.results import Figure, Finding
from harness.runtimes import get_runtime
from harness.subject import Subject

_NOT_COMPARED = ("freqs_cos", "freqs_sin", "crossed_rows")  # of a layout; see the tables below


def agreement_with(other: Callable[[], Subject]) -> Check[Subject]:
    """Return the check that a subject agrees with another, which is opened when the check runs."""

    def find(subject: Subject, runtime: str) -> Iterator[Finding]:
        return _agreement(subject, other(), runtime)

    return Check("agreement", find, takes_runtime=True)


def _agreement(subject: Subject, other: Subject, runtime: str) -> Iterator[Finding]:
    """Compare `subject` with `other`, an export of the same checkpoint with the same options.

    Teacher forced, as parity: prefill in chunks, decode step by step, logits and caches. Both are
    given the subject's RoPE tables, which are compared for themselves: one that is rounded the
    other way (angles in fp32, angles in fp64) moves a key by more than a sum in another order does.
    The difference is taken relative to the largest value of `other`.
    """
    interface = _interface(subject.session(runtime).layout, other.session(runtime).layout)
    yield interface
    if not interface.ok:  # what is called in another way cannot be given the same calls
        return
    yield _tables(subject.tables, other.tables)
    have = measure(subject, runtime).trace
    session = open_session(other.artifact, get_runtime(runtime), subject.tables)
    want = trace(session, sequence(subject), prompt_length(subject))
    allowed = tolerances(subject, runtime)
    for part, found in _differences(have, want).items():
        figures = {f"{part} difference": Figure(found.relative, "", bound=allowed[part])}
        yield Finding("agreement", part, comparisons=found.count, figures=figures)


def _tables(ours: Freqs, theirs: Freqs) -> Finding:
    """RoPE tables differ by no more than each may from the exact ones."""
    have, want = torch.stack(ours), torch.stack(theirs)
    over = ((have.double() - want.double()).abs() / table_error(theirs[0])).max()
    return Finding(
        "agreement",
        "tables",
        comparisons=want.numel(),
        figures={"tables difference over allowed": Figure(float(over), "", bound=1.0)},
        facts={"table values that differ": int((have != want).sum())},
    )


def _interface(ours: ModelLayout, theirs: ModelLayout) -> Finding:
    """Everything that decides a call: lengths, shapes, dtypes, and the index of every tensor."""
    have, want = _facts(ours), _facts(theirs)
    differing = [
        f"{name} is {have[name]}, not {want[name]}" for name in want if have[name] != want[name]
    ]
    return Finding(
        "agreement",
        "interface",
        ok=not differing,
        message=f"the two are not called in one way: {'; '.join(differing)}",
        comparisons=len(want),
    )


def _facts(layout: ModelLayout) -> dict[str, object]:
    names = [field.name for field in fields(ModelLayout) if field.name not in _NOT_COMPARED]
    shapes = {"freqs_cos": list(layout.freqs_cos.shape), "freqs_sin": list(layout.freqs_sin.shape)}
    return {name: getattr(layout, name) for name in names} | shapes


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
