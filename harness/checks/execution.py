"""Executes an artifact and watches its values: their range in fp16, and NaN in its outputs.

A language model gets its sequence. Each method of another artifact is called with the user's inputs
or with made-up ones, at every shape that `harness.golden.inputs` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.checks.accuracy import prompt_length, sequence, trace
from harness.checks.run import check
from harness.errors import ExecutionError, IndexRangeError
from harness.golden import Steps, run_steps
from harness.golden.inputs import all_inputs
from harness.mil import observed
from harness.mil.ranges import LARGEST, RangeMonitor
from harness.results import Finding
from harness.results.figures import Figure
from harness.runtimes import REFERENCE, get_runtime
from harness.subject import Subject, executable

CHECK = "fp16-range"
OF_DOMAINS = frozenset(("acos", "asin", "atanh", "log", "pow", "rsqrt", "sqrt"))
"""Operations that give NaN for finite numbers outside their domain, which made-up inputs may be."""


@dataclass(frozen=True)
class _Sequence:
    """The calls of a method; `is_made_up` unless the user gave their inputs."""

    method: str
    name: str
    steps: Steps
    is_made_up: bool


def fp16(subject: Subject) -> str | None:
    """Return why an artifact that is not fp16 is skipped, or None."""
    return None if subject.dtype == "fp16" else f"an {subject.dtype} artifact holds no fp16 values"


@check("fp16-range", needs=(executable, fp16), damaged="N01")
def check_fp16_range(subject: Subject) -> Iterator[Finding]:
    """Check under `widen` that FLOAT16 results stay in fp16's range, and that no output is NaN."""
    monitor = RangeMonitor()
    with observed(monitor):
        if subject.is_language_model:
            traced = trace(subject.session(REFERENCE), sequence(subject), prompt_length(subject))
            yield from _lost_logits(traced.logits, monitor)
        else:
            for calls in _sequences(subject):
                yield from _executed(subject, calls, monitor)
    rows = list(monitor.ranges.values())
    over = [row for row in rows if row.peak > LARGEST]
    first = f"the first is {over[0].where}, which reaches {over[0].peak:.4g}" if over else ""
    peak = max((row.peak for row in rows), default=0.0)
    figures = {"largest activation": Figure(peak, "", LARGEST)}
    squares = [row.square_margin for row in rows if row.square_margin is not None and row.nonzero]
    if squares:
        figures["margin of squares"] = Figure(min(squares), "", 1.0, "higher")
    nan = sum(row.nan > 0 for row in rows)
    yield Finding(
        CHECK,
        "activations",
        ok=not over,
        message=f"{len(over)} of {len(rows)} operations exceed fp16's {LARGEST:.0f}; {first}",
        comparisons=len(rows),
        figures=figures,
        facts={"operations over fp16": len(over), **({"operations with NaN": nan} if nan else {})},
        code="N17",
    )


def _lost_logits(logits: torch.Tensor, monitor: RangeMonitor) -> Iterator[Finding]:
    """Yield that logits are NaN or infinite, and the first operation that gave a NaN."""
    if lost := int((~logits.isfinite()).sum()):
        first = f", first at {monitor.first_nan.where}" if monitor.first_nan else ""
        text = f"{lost:,} of {logits.numel():,} logits are NaN or infinite{first}"
        yield Finding(CHECK, "logits", False, text, logits.numel(), code="N18")


def _sequences(subject: Subject) -> Iterator[_Sequence]:
    given = {
        method: {name: tuple(call.inputs for call in calls) for name, calls in sequences.items()}
        for method, sequences in (subject.golden or {}).items()
    }
    for method, sequences in all_inputs(subject.artifact, subject.seed, given).items():
        for name, steps in sequences.items():
            yield _Sequence(method, name, steps, not given.get(method))


def _executed(subject: Subject, calls: _Sequence, monitor: RangeMonitor) -> Iterator[Finding]:
    """Execute a sequence; yield what it cannot execute, and its outputs that are NaN."""
    method = get_runtime(REFERENCE).load(subject.artifact, calls.method)
    names = [spec.name for spec in method.inputs]
    where = f"method '{calls.method}', sequence '{calls.name}'"
    monitor.first_nan = None
    before = _nan_counts(monitor)
    try:
        results = run_steps(subject.artifact, calls.method, REFERENCE, calls.steps)
    except ExecutionError as error:
        shapes = _shapes(names, calls.steps[0])
        operation = error.where.partition(", ")[2] or error.where
        text = f"inputs of the shapes {shapes} fail at {operation}: {error.reason}"
        yield Finding(CHECK, where, False, text, 1, code="N06")
        return
    except IndexRangeError as error:
        if not calls.is_made_up:
            raise
        yield _refused(subject, calls, names, error)
        return
    if monitor.first_nan is not None and calls.is_made_up and any(map(_has_integers, calls.steps)):
        results = _with_ones(subject, calls, monitor, before) or results
    first = monitor.first_nan
    if first is None or (calls.is_made_up and first.operation in OF_DOMAINS):
        return
    outputs = [spec.name for spec in method.outputs]
    for step in results:
        for name, value in zip(outputs, step, strict=False):
            if value.is_floating_point() and (bad := int(value.isnan().sum())):
                operation = first.where.partition(", ")[2] or first.where
                text = f"{bad:,} of {value.numel():,} numbers are NaN, first at {operation}"
                yield Finding(CHECK, f"{where}, output '{name}'", False, text, 1, code="N18")


def _with_ones(
    subject: Subject, calls: _Sequence, monitor: RangeMonitor, before: Mapping[str, int]
) -> list[tuple[torch.Tensor, ...]]:
    """Execute a sequence whose values hold NaN again with integers of 1; return its results.

    Zeros may mask a whole row: infinities alone give NaN in a softmax. The monitor's NaN becomes
    that of this run, after the counts `before` the first one. When this run fails, the monitor
    keeps the first one's NaN, and the results are empty.
    """
    first, counts = monitor.first_nan, _nan_counts(monitor)
    monitor.first_nan = None
    _set_nan_counts(monitor, before)
    ones = tuple(tuple(map(_ones, step)) for step in calls.steps)
    try:
        return run_steps(subject.artifact, calls.method, REFERENCE, ones)
    except (ExecutionError, IndexRangeError):
        monitor.first_nan = first
        _set_nan_counts(monitor, counts)
        return []


def _nan_counts(monitor: RangeMonitor) -> dict[str, int]:
    return {where: row.nan for where, row in monitor.ranges.items()}


def _set_nan_counts(monitor: RangeMonitor, counts: Mapping[str, int]) -> None:
    for where, row in monitor.ranges.items():
        row.nan = counts.get(where, 0)


def _refused(
    subject: Subject, calls: _Sequence, names: Sequence[str], error: IndexRangeError
) -> Finding:
    """Execute a sequence again with integers of 0 and 1; tell what was refused, and which ran."""
    small = tuple(tuple(map(_small, step)) for step in calls.steps)
    try:
        run_steps(subject.artifact, calls.method, REFERENCE, small)
        then = "with integers of 0 and 1 it runs"
    except (ExecutionError, IndexRangeError):
        then = "integers of 0 and 1 fail, too"
    used = ", ".join(
        f"'{name}' {int(tensor.min())} to {int(tensor.max())}"
        for name, tensor in zip(names, calls.steps[0], strict=True)
        if not tensor.is_floating_point() and tensor.numel()
    )
    text = f"made-up inputs ({used}) were refused: {error}; {then}"
    where = f"method '{calls.method}', sequence '{calls.name}'"
    return Finding(CHECK, where, False, text, 1, code="N08", warning=True)


def _has_integers(step: Sequence[torch.Tensor]) -> bool:
    return any(not tensor.is_floating_point() for tensor in step)


def _ones(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_floating_point() else torch.ones_like(tensor)


def _small(tensor: torch.Tensor) -> torch.Tensor:
    is_integer = not tensor.is_floating_point() and tensor.dtype != torch.bool
    return tensor.remainder(2) if is_integer else tensor


def _shapes(names: Sequence[str], step: Sequence[torch.Tensor]) -> str:
    pairs = zip(names, step, strict=True)
    return ", ".join(f"'{name}' {list(tensor.shape)}" for name, tensor in pairs)
