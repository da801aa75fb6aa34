"""Finds the first operation whose own rounding differs too much from the double policy.

A method runs twice on the same inputs: under `double`, the reference, and under the judged policy.
Then each operation runs twice more, on the reference's values rounded to the judged policy. The
difference that remains is the operation's own error, without the errors of its inputs. An operation
that is named has therefore made the error itself. The tolerance class in `operations.toml` gives
the error that is allowed:

- exact: none beyond rounding the reference's value;
- elementwise: `ULPS` units in the last place of each element;
- accumulated: `ULPS` units at the root mean square of the result, because sums cancel, and `SUMMED`
  units of fp32, the dtype of sums, whose error grows with the root of the number of terms;
- statistical: any.

An infinity or NaN that the reference does not have is always an error. The two whole runs find the
operations that amplify errors of their inputs: an operation is named too if its result is off by
more than `LOST` of its size, its inputs are not, and a result of the function is off by as much
because of it. The last condition spares the power of two that a norm divides by and multiplies with
again: it may be another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from harness.artifact import Artifact
from harness.checks.execution import OF_DOMAINS
from harness.divergence.culprit import Divergence
from harness.divergence.recording import LargestErrors, Part, Recorder, Recording
from harness.mil import Policy, get_policy
from harness.mil.block import Step
from harness.mil.operation import operations
from harness.mil.types import TensorType
from harness.results import OperationError
from harness.runtimes.base import Method

ULPS = 4
SUMMED = 64  # the root of 4096 terms
LOST = 0.1  # root mean square, a signal of 20 dB
_WRITES = "write_state"
_HALF = torch.finfo(torch.float16)
_SINGLE = torch.finfo(torch.float32)


@dataclass
class PrecisionReport:
    """The result of comparing a policy with `double`.

    It counts the calls of functions and the operations that were judged, and the operations that
    could not be: their inputs or results are random or not tensors. It names the operations that
    differ from the reference. It gives the error of the last call's last result: the root mean
    square of the error over that of the result. `nan` is a sentence about the first output that is
    NaN under `double`, too; "" if none is. `errors` are the operations' own, over what their
    tolerances allow, in the order of their execution.
    """

    calls: int = 0
    judged: int = 0
    skipped: int = 0
    found: list[Divergence] = field(default_factory=list)
    accumulated: float = 0.0
    nan: str = ""
    errors: LargestErrors = field(default_factory=LargestErrors)

    def know_layers(self, layers: LargestErrors) -> None:
        """Give the operations that were found the layers that a comparison with a model knows."""
        self.found = [
            replace(one, layer=layers.layer_of(str(one.place), one.result)) for one in self.found
        ]


class PrecisionJudge:
    """A runtime whose methods run under `double` and compare a policy with it.

    The reference answers every call, so caches do not carry errors to the next call.
    """

    name = "bisect"

    def __init__(self, policy: str, part: Part) -> None:
        self._part = part
        self.report = PrecisionReport()
        self._judged = Recorder(get_policy(policy))
        self._reference = Recorder(get_policy("double"))

    def unavailable(self) -> str | None:
        """Return None: this runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method of the artifact under both policies."""
        pair = self._reference.load(artifact, method), self._judged.load(artifact, method)
        return _Paired(self, *pair)

    def judge(self) -> None:
        """Judge the call that both have just recorded."""
        for have, want in zip(self._judged.recordings, self._reference.recordings, strict=True):
            if self._part.has(have.place):
                self._functions(have, want)

    def _functions(self, have: Recording, want: Recording) -> None:
        self.report.calls += 1
        self.report.nan = self.report.nan or _nan(want)
        reference = {step.names[0]: step for step in want.steps if step.names}
        off = {name: _off(value, want.values.get(name)) for name, value in have.values.items()}
        reaching = _reaching(have, off)
        for step in have.steps:
            pair = reference.get(step.names[0]) if step.names else None
            if pair is None or operations()[step.operation].tolerance == "statistical":
                self.report.skipped += 1
                continue
            judged = own_error(step, pair, have, want)
            if judged is None:
                self.report.skipped += 1
                continue
            self.report.judged += 1
            (reason, error), total = judged, off[step.names[0]]
            if not reason and step.names[0] in reaching:
                reason = _amplified(step, have, off)
                error = total / LOST if reason else error
            if reason:
                self._add(step, have, want, reason)
            self.report.accumulated = total
            place = str(have.place)
            row = OperationError(place, step.operation, step.names[0], "", error, total)
            self.report.errors.add([row])

    def _add(self, step: Step, have: Recording, want: Recording, reason: str) -> None:
        known = {(d.place, d.result) for d in self.report.found}
        if (have.place, step.names[0]) in known:
            return
        reads = {
            name: "a constant" if have.constant(slot) is not None else _size(want.values.get(name))
            for slot, name in zip(step.reads, have.read_names(step), strict=True)
            if name is not None
        }
        name, shape = step.names[0], tuple(have.values[step.names[0]].shape)
        found = Divergence(have.place, step.operation, name, shape, reads, reason)
        self.report.found.append(found)


class _Paired:
    def __init__(self, judge: PrecisionJudge, reference: Method, judged: Method) -> None:
        self.name, self.inputs, self.outputs = judged.name, judged.inputs, judged.outputs
        self._judge, self._reference, self._judged = judge, reference, judged

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._judged(*tensors)
        answer = self._reference(*tensors)
        self._judge.judge()
        return answer


@torch.inference_mode()
def own_error(step: Step, pair: Step, have: Recording, want: Recording) -> tuple[str, float] | None:
    """Describe an operation's error on right inputs, and return it over what its tolerance allows.

    The description is "" when the error is within the tolerance. Return None when there is nothing
    to compare: an input is not a tensor, or no result is a number.
    """
    entered: list[Any] = []
    exact: list[Any] = []
    for slot, other, name in zip(step.reads, pair.reads, have.read_names(step), strict=True):
        if name is None or have.constant(slot) is not None:
            entered.append(None if name is None else have.constant(slot))
            exact.append(None if name is None else want.constant(other))
            continue
        tensor, declared = want.values.get(name), have.types.get(name)
        if not isinstance(tensor, torch.Tensor) or not isinstance(declared, TensorType):
            return None
        rounded = have.function.policy.enter(tensor, declared.dtype)
        entered.append(rounded)
        exact.append(want.function.policy.enter(rounded, declared.dtype))
    pairs = zip(_run(step, entered), _run(pair, exact), step.types, strict=True)
    tolerance = operations()[step.operation].tolerance
    said = [_beyond(h, w, t, tolerance, have.function.policy) for h, w, t in pairs]
    compared = [one for one in said if one is not None]
    return max(compared, key=lambda one: (bool(one[0]), one[1])) if compared else None


def _nan(recording: Recording) -> str:
    """Describe the first output of a function that holds NaN, and the operation that gave it.

    Return "" without one, and for an operation outside its domain.
    """

    def nan(name: str) -> int:
        value = recording.values.get(name)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return int(value.isnan().sum())
        return 0

    output = next(filter(nan, recording.function.outputs), None)
    if output is None:
        return ""
    step = next((step for step in recording.steps if any(map(nan, step.names))), None)
    if step is not None and step.operation in OF_DOMAINS:  # its inputs may be made up
        return ""
    first = "an input" if step is None else f"{step.operation} '{step.names[0]}'"
    count = recording.values[output].numel()
    return (
        f"{recording.place}: {nan(output):,} of {count:,} numbers of output '{output}' are NaN "
        f"under double, too, first at {first}"
    )


def _run(step: Step, values: Sequence[Any]) -> tuple[Any, ...]:
    result = step.run(*values)
    return result if isinstance(result, tuple) else (result,)


def _beyond(
    have: Any, want: Any, declared: Any, tolerance: str, policy: Policy
) -> tuple[str, float] | None:
    """Describe the difference of two results, "" if its tolerance class allows it, and measure it.

    Return None when there is nothing to compare: a result is not a tensor, is empty, or both are
    NaN everywhere.
    """
    if not isinstance(have, torch.Tensor) or not isinstance(declared, TensorType):
        return None
    if have.shape != want.shape:
        said = f"gives shape {list(have.shape)} where double gives {list(want.shape)}"
        return said, math.inf
    if not have.numel() or bool((have.isnan() & want.isnan()).all()):
        return None
    if not have.is_floating_point():
        if not (wrong := int((have != want).sum())):
            return "", 0.0
        return f"gives {wrong} of {have.numel()} integers that double does not", math.inf
    have, want = have.double(), want.double()
    half = policy.rounds_half and declared.dtype.name == "FLOAT16"
    lost = ~torch.isfinite(have) & torch.isfinite(want)
    if bool(lost.any()):
        peak = float(want[lost].abs().max())
        said = (
            f"gives an infinity or NaN for {int(lost.sum()):,} of {have.numel():,} values that "
            f"double holds, of up to {peak:.6g}"
            + (f" (fp16 ends at {_HALF.max:.0f})" if half else "")
        )
        return said, math.inf
    both = torch.isfinite(have) & torch.isfinite(want)
    error = torch.where(both, (have - want).abs(), 0.0)
    unit = _unit(want, _HALF if half else _SINGLE)
    if tolerance == "exact":
        allowed = unit / 2  # the error of rounding the reference's own value
    elif tolerance == "elementwise":
        allowed = ULPS * unit
    else:
        rms = want[both].square().mean().sqrt() if both.any() else want.new_zeros(())
        summed = SUMMED * _unit(rms, _SINGLE)
        allowed = ULPS * torch.maximum(unit, _unit(rms, _HALF if half else _SINGLE)) + summed
    share = float((error / allowed).max())
    if not share > 1:
        return "", share
    ulps = float((error / unit).max())
    return f"is off by {ulps:.3g} ULP on inputs that are right ({tolerance})", share


def _unit(tensor: torch.Tensor, format_: torch.finfo) -> torch.Tensor:
    """Return the distance between neighbouring numbers of a format at each element.

    Below the smallest normal number, it is the distance at that number.
    """
    size = tensor.abs().nan_to_num(posinf=format_.max).clamp(min=format_.tiny, max=format_.max)
    return torch.exp2(size.log2().floor()) * format_.eps


def _off(have: Any, want: Any) -> float:
    """Return the root mean square of the difference over that of the reference.

    It is 0 for values that are not float tensors or are empty. It is infinite if the shapes differ
    or an element is finite in only one of them.
    """
    if not (isinstance(have, torch.Tensor) and isinstance(want, torch.Tensor)):
        return 0.0
    if not have.is_floating_point() or not have.numel():
        return 0.0
    if have.shape != want.shape:
        return torch.inf
    have, want = have.double(), want.double()
    same = (have == want) | (have.isnan() & want.isnan())
    error = torch.where(same, 0.0, have - want).nan_to_num(nan=torch.inf)
    size = torch.where(torch.isfinite(want), want, 0.0).square().mean().sqrt()
    rms = error.square().mean().sqrt()
    return float(rms / size) if size else float(rms)


def _reaching(have: Recording, off: Mapping[str, float]) -> set[str | None]:
    """Return the values whose errors reach a result of the function or a state.

    On the way there, every result must be off by more than `LOST`: an error that is lost again on
    every way does not count.
    """
    reaching: set[str | None] = set(have.function.outputs)
    for step in reversed(have.steps):
        carries = any(name in reaching and off[name] > LOST for name in step.names)
        if carries or step.operation == _WRITES:
            reaching.update(have.read_names(step))
    return reaching


def _amplified(step: Step, have: Recording, off: dict[str, float]) -> str:
    result = off[step.names[0]]
    names = [name for name in have.read_names(step) if name in off]
    worst = max((off[name] for name in names if name is not None), default=0.0)
    if result > LOST >= worst:
        return f"turns inputs that are off by {worst:.3g} into a result that is off by {result:.3g}"
    return ""


def _size(value: Any) -> str:
    if not isinstance(value, torch.Tensor) or not value.numel():
        return "no tensor"
    finite = value.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return f"up to {float(finite.abs().max()):.4g}"
