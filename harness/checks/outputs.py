"""An artifact of any model against what the user gives: an eager module, or a golden file.

The tolerance is calibrated. A runtime that rounds may be off by twice what the artifact's own
precision costs the reference, but at least by two fp16 steps. One that carries more precision may
be off by 1e-5 of the largest value, or by twice what is open about the reference: whether its
constants are rounded, and, where weights were folded into others, when. A golden file that does not
state what precision costs, or a function whose weights cannot be rounded, allows twice the distance
of `mil:strict` from `mil:double` on the artifact itself, but at least two fp16 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.checks.accuracy import (
    CALIBRATED_MULTIPLE,
    CEILINGS,
    WIDE_TOLERANCE,
    Error,
    error,
    noise_floor,
)
from harness.checks.run import check
from harness.errors import HarnessError, NoReferenceError
from harness.golden import Call, distance, golden_of_runtime, run_steps
from harness.golden.inputs import all_inputs
from harness.golden.weights import distinct
from harness.pte import same_shape
from harness.results import Figure, Finding
from harness.runtimes import REFERENCE, get_runtime, runtime_row
from harness.subject import Subject, executable

_FP16_STEPS = 2 * 2.0**-10  # of the largest value
_FP32_STEPS = 2 * 2.0**-23
_MEASURED = (
    ", twice what precision costs on the artifact itself: the golden file does not state the cost, "
    "or the weights of the reference, a function, cannot be rounded"
)


def values(subject: Subject) -> str | None:
    """Return why an artifact without anything to be held against is skipped, or None."""
    if subject.has_golden:
        return None
    return "needs --reference module:function or --golden FILE"


def module(subject: Subject) -> str | None:
    """Return why an artifact without an eager module with parameters is skipped, or None."""
    reference = subject.reference_module
    if reference is None:
        return "needs --reference module:function"
    if not reference.parameters(subject.artifact.methods):
        return "the reference has no parameters to compare with"
    found = subject.reference_weights
    if not any(match.parameter or match.difference for match in found):
        return "no weight is a parameter of the reference: each was folded with others"
    return None


@check("reference-weights", needs=(module,))
def check_reference_weights(subject: Subject) -> Iterator[Finding]:
    """Check the weights that are the module's parameters: all values equal once rounded.

    A weight that resembles no parameter was folded or quantized, and is left to `outputs`, unless
    a parameter of its size is missing.
    """
    assert subject.reference_module is not None
    found = [match for match in subject.reference_weights if match.parameter or match.difference]
    for match in found:
        ok, text = not match.difference, match.difference
        yield Finding("reference-weights", match.where, ok, text, match.count, code="W04")
    digests = distinct(subject.reference_module.parameters(subject.artifact.methods))
    matched = {digests[match.parameter] for match in found if match.parameter in digests}
    facts = {"reference tensors": len(set(digests.values())), "matched tensors": len(matched)}
    yield Finding("reference-weights", "the reference", facts=facts)


@check("outputs", needs=(values, executable), takes_runtime=True, damaged="N01")
def check_outputs(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Call each method with each sequence of inputs, and compare every output."""
    assert subject.golden is not None
    for method, sequences in subject.golden.items():
        found = [
            one
            for name, calls in sequences.items()
            for one in compared_outputs(subject, method, name, calls, runtime)
        ]
        worst = max(found, key=excess)
        is_ok = worst.error.relative <= worst.bound
        is_measured = any(
            expected.rounding is None
            for calls in sequences.values()
            for call in calls
            for expected in call.expected.values()
        )
        yield Finding(
            "outputs",
            f"method '{method}'",
            ok=is_ok,
            message=f"sequence '{worst.sequence}', output '{worst.output}' is off by "
            f"{worst.error.relative:.4g} of its largest value; {worst.bound:.4g} is allowed"
            f"{_MEASURED if is_measured else ''}",
            comparisons=sum(one.error.count for one in found),
            figures={
                f"{method} error over allowed": Figure(
                    worst.error.relative / worst.bound,
                    bound=1.0,
                    floor=noise_floor(worst.bound) / worst.bound,
                )
            },
            facts={f"{method} sequences": len(sequences)},
            code="N20",
        )


@dataclass(frozen=True)
class Compared:
    """An output of a sequence at its worst step; `bound` is relative to the largest value."""

    sequence: str
    output: str
    error: Error
    bound: float


def excess(one: Compared) -> tuple[bool, float]:
    """Return a key that orders outputs from best to worst; NaN compares with nothing."""
    return not math.isfinite(one.error.relative), one.error.relative / one.bound


def compared_outputs(
    subject: Subject, method: str, sequence: str, calls: Sequence[Call], runtime: str
) -> Iterator[Compared]:
    """Call a method on each step's inputs, and compare each output with the nearest value.

    Raises HarnessError for a shape that is not the reference's.
    """
    names = [spec.name for spec in get_runtime(REFERENCE).load(subject.artifact, method).outputs]
    given = run_steps(subject.artifact, method, runtime, [call.inputs for call in calls])
    bounds = _bounds(subject, method, calls, runtime)
    for step, (results, call) in enumerate(zip(given, calls, strict=True)):
        if max(call.expected) >= len(results):
            raise HarnessError(
                f"method '{method}' has {len(results)} outputs, the reference gives "
                f"{max(call.expected) + 1}"
            )
        for index, expected in call.expected.items():
            actual, wanted = results[index], expected.values[0]
            if not same_shape(actual.shape, wanted.shape):
                raise HarnessError(
                    f"method '{method}', sequence '{sequence}', step {step}: output "
                    f"'{names[index]}' has shape {list(actual.shape)}, the reference's has "
                    f"{list(wanted.shape)}"
                )
            nearest = min(
                (error(actual.reshape(value.shape), value) for value in expected.values),
                key=lambda found: found.relative,
            )
            yield Compared(sequence, names[index], nearest, bounds[index])


def output_distances(
    base: Subject, head: Subject, runtime: str
) -> Iterator[tuple[str, Error, float]]:
    """Yield how far each of HEAD's outputs is from what BASE gives in `double`, with the bounds."""
    artifact = base.artifact
    values = golden_of_runtime(artifact, "mil:double", all_inputs(artifact, base.seed))
    against = Subject(head.artifact.path)
    against.golden = values
    assert against.golden is not None
    for method, sequences in values.items():
        if method not in head.artifact.methods:
            raise HarnessError(f"HEAD has no method '{method}'")
        found = [
            one
            for name, calls in sequences.items()
            for one in compared_outputs(against, method, name, calls, runtime)
        ]
        for output in dict.fromkeys(one.output for one in found):
            worst = max((one for one in found if one.output == output), key=excess)
            yield f"{method}: {output}", worst.error, worst.bound


def _bounds(subject: Subject, method: str, calls: Sequence[Call], runtime: str) -> dict[int, float]:
    """Return how far each output of a sequence may be off, relative to its largest value."""
    rounds = runtime_row(runtime).rounds
    step = _FP16_STEPS if subject.dtype == "fp16" else _FP32_STEPS
    bounds = {}
    costs: dict[int, float] | None = None
    for index in sorted(set().union(*(call.expected for call in calls))):
        expected = [call.expected[index] for call in calls if index in call.expected]
        stated = [one.rounding for one in expected if one.rounding is not None]
        if len(stated) < len(expected):
            costs = costs or _measured_costs(subject, method, calls)
            if not costs[index] <= CEILINGS[subject.dtype] / CALIBRATED_MULTIPLE:
                raise NoReferenceError(
                    f"method '{method}', output {index}: {subject.dtype} costs {costs[index]:.3g} "
                    "on the artifact itself, and no tolerance can be measured"
                )
            bounds[index] = max(CALIBRATED_MULTIPLE * costs[index], step)
            continue
        if not all(map(math.isfinite, stated)):
            raise NoReferenceError(
                f"method '{method}', output {index}: the reference overflows {subject.dtype}, and "
                "no tolerance can be measured"
            )
        spread = CALIBRATED_MULTIPLE * max(one.spread for one in expected)
        bounds[index] = max(spread, WIDE_TOLERANCE)
        if rounds:
            bounds[index] += max(CALIBRATED_MULTIPLE * max(stated), step)
    return bounds


def _measured_costs(subject: Subject, method: str, calls: Sequence[Call]) -> dict[int, float]:
    """Return how far `mil:strict` is from `mil:double`, by output."""
    steps = [call.inputs for call in calls]
    strict, double = (
        run_steps(subject.artifact, method, f"mil:{policy}", steps)
        for policy in ("strict", "double")
    )
    costs = [
        [distance(a, b) for a, b in zip(*pair, strict=True)]
        for pair in zip(strict, double, strict=True)
    ]
    return {index: max(column) for index, column in enumerate(zip(*costs, strict=True))}
