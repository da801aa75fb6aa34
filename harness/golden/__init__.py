"""Values that an artifact's methods are held against, of any model: calls, and what they must give.

They come from an eager module of the user's (`eager`), from a runtime that is trusted, or from a
golden file, which keeps either (`files`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.artifact import Artifact
from harness.errors import HarnessError
from harness.pte import TensorSpec, same_shape
from harness.runtimes import Runtime, get_runtime, runtime_row

Steps = tuple[tuple[torch.Tensor, ...], ...]
"""The inputs of the calls of a sequence, in declared order."""


@dataclass(frozen=True)
class Expected:
    """What an output must be: the nearest of `values` counts.

    `rounding` is what the artifact's own precision costs, relative to the largest magnitude; None
    when nobody has measured it.
    """

    values: tuple[torch.Tensor, ...]
    rounding: float | None = None

    @property
    def spread(self) -> float:
        """The largest relative distance between two of the values."""
        return max((distance(value, self.values[0]) for value in self.values[1:]), default=0.0)


@dataclass(frozen=True)
class Call:
    """The inputs of a call in declared order, and what it must give, by the output's position."""

    inputs: tuple[torch.Tensor, ...]
    expected: Mapping[int, Expected]


Golden = dict[str, dict[str, tuple[Call, ...]]]
"""By method and by sequence: the calls of the sequence, in order."""


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error over the largest expected magnitude; infinite for NaN."""
    have, want = actual.double(), expected.double()
    if want.numel() == 0:
        return 0.0
    largest, scale = float((have - want).abs().max()), float(want.abs().max())
    found = largest / scale if scale else largest
    return found if math.isfinite(found) else math.inf


def golden_of_runtime(
    artifact: Artifact, runtime: str, seeded: Mapping[str, Mapping[str, Steps]]
) -> Golden:
    """Return what a runtime gives for inputs, by method and sequence.

    Where the runtime carries more precision than the artifact, the distance of `mil:strict` from it
    is the cost of that precision.
    """
    rounds = runtime_row(runtime).rounds
    golden: Golden = {}
    for method, sequences in seeded.items():
        golden[method] = {}
        for name, steps in sequences.items():
            given = run_steps(artifact, method, runtime, steps)
            rounded = given if rounds else run_steps(artifact, method, "mil:strict", steps)
            golden[method][name] = tuple(
                Call(inputs, _expected(values, strict, rounds))
                for inputs, values, strict in zip(steps, given, rounded, strict=True)
            )
    return golden


def _expected(
    given: Sequence[torch.Tensor], rounded: Sequence[torch.Tensor], rounds: bool
) -> dict[int, Expected]:
    costs = [None if rounds else distance(*pair) for pair in zip(rounded, given, strict=True)]
    return {i: Expected((value,), costs[i]) for i, value in enumerate(given)}


def run_steps(
    artifact: Artifact,
    method: str,
    runtime: str | Runtime,
    steps: Sequence[Sequence[torch.Tensor]],
) -> list[tuple[torch.Tensor, ...]]:
    """Load a method, so that its states are zeros, and call it with the inputs of each step.

    An isolated runtime, named anew each time, starts a process for each call of this function.
    """
    found = get_runtime(runtime) if isinstance(runtime, str) else runtime
    loaded = found.load(artifact, method)
    return [tuple(t.clone() for t in loaded(*inputs)) for inputs in steps]


def check_output(value: torch.Tensor, spec: TensorSpec, where: str) -> None:
    """Raise HarnessError unless an output can be compared with a value: finite, of its shape.

    A flexible size is -1, and only the check that executes the artifact knows it.
    """
    if value.is_complex():
        raise HarnessError(f"{where} is {dtype_name(value)}; the artifact's is {spec.dtype}")
    if not (same_shape(value.shape, spec.shape) or spec.fits(value.shape)):
        raise HarnessError(
            f"{where} has shape {list(value.shape)}; the artifact's has {list(spec.shape)}"
        )
    if not value.isfinite().all():
        raise HarnessError(f"{where} holds NaN or infinity, and nothing can be compared with it")


def dtype_name(value: torch.Tensor) -> str:
    """Return the name that a `TensorSpec` has for a tensor's dtype."""
    return str(value.dtype).removeprefix("torch.")
