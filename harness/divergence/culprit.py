"""Finds the first operation whose result is not a value of the model's graph.

Each operation's result is compared with the stages of the graph. A result that matches no stage is
not wrong yet: an exporter may compute a stage in its own way. Such an operation is *excused* when a
new stage is computed from it, directly or through other operations without a stage: a wrong value
would have made that stage wrong too. Two results do not excuse it: a stage that was already
computed, as when x + 0 is x again, and a result that may omit the wrong part, as a selection or an
integer may. An operation whose result the function returns is never excused.

The program leaves the model at the first operation that neither matches a stage nor is excused.
Everything before it is right, so this operation makes the error and does not inherit it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from harness.divergence.recording import Place, Recording
from harness.divergence.stages import TOLERANCE, Catalogue, distance, layer_of
from harness.mil.block import Step
from harness.mil.packed import PackedWeight
from harness.results import OperationError

_HEAD = 10**9  # the number of what follows all layers
_CLEARLY = 0.6  # of the distance within the layer
_NEAR = 0.25  # of the largest value: a stage that is further away explains nothing
_ROUNDED = 1e-3  # of the largest value: a weight in fp16 is off by half of it at most
_SAMPLED = 2**16  # elements of a weight by which a constant is known
_SLICES = ("slice_by_index", "slice_by_size", "split")
_SELECTIONS = ("gather", "gather_along_axis", "gather_nd", "select", "topk", *_SLICES)
_LOSSY = ("floor", "ceil", "round", "sign", *_SELECTIONS)


@dataclass(frozen=True)
class Divergence:
    """An operation whose result differs from its reference.

    `result` and `shape` are the name and the shape of its first result. `reads` describes the value
    of each input, by its name. `reason` ends a sentence: "is not a value of the model; ...".
    `layer` is the operation's layer, "" if nobody knows it.
    """

    place: Place
    operation: str
    result: str
    shape: tuple[int, ...]
    reads: Mapping[str, str]
    reason: str
    layer: str = ""

    @property
    def evidence(self) -> str:
        """What differs and what it reads, in two lines, without the place."""
        reads = "; ".join(f"'{name}' ({what})" for name, what in self.reads.items())
        layer = f"{self.layer}, " if self.layer else ""
        return (
            f"{layer}{self.operation} '{self.result}' {list(self.shape)} {self.reason}\n"
            f"  it reads {reads or 'nothing'}"
        )

    def __str__(self) -> str:
        return f"{self.place}: {self.evidence}"


@dataclass
class Comparison:
    """The result of comparing one call with the graph.

    It counts the operations that match a stage and those that are excused; `first` is the first
    operation that is neither, after which nothing is counted. `errors` has every operation.
    """

    matched: int = 0
    excused: int = 0
    first: Divergence | None = None
    errors: list[OperationError] = field(default_factory=list)


def compare(recordings: Sequence[Recording], catalogue: Catalogue) -> Comparison:
    """Compare the operations of one call of a method with the graph, function after function.

    The error of an operation is its distance to the stage that it matches, or to the nearest one of
    its layer and the next; an operation that is excused, or resembles none, has no error.
    """
    found, layer = Comparison(), ""
    for recording in recordings:
        stages = _stages(recording, catalogue)
        pardoned = _excused(recording, stages)
        for step in recording.steps:
            name = step.names[0]
            away = min(stages[name].values(), default=None)
            near: Iterable[str] = stages[name]
            leaves = away is None and name not in pardoned
            if leaves:
                nearest = _nearest(recording.values[name], catalogue, layer)
                near, away = nearest or ((), None)
            layer = _next_layer(layer, near)
            if leaves and found.first is None:
                found.first = _divergence(recording, step, stages, catalogue, layer)
                away = math.inf if away is None else away
            elif found.first is None:
                found.matched += bool(stages[name])
                found.excused += name in pardoned
            error = None if away is None else away / TOLERANCE
            place = str(recording.place)
            found.errors.append(OperationError(place, step.operation, name, layer, error))
    return found


def _nearest(value: Any, catalogue: Catalogue, layer: str) -> tuple[tuple[str], float] | None:
    """Return the nearest stage of a layer and the distance to it.

    One of the next layer must be much nearer: wrong values resemble those of all layers a little.
    """
    if not isinstance(value, torch.Tensor):
        return None
    here = catalogue.nearest(value, {layer, ""})
    after = catalogue.nearest(value, {f"layer {_number(layer) + 1}", "head"})
    if after is not None and after[1] < (_CLEARLY * here[1] if here else _NEAR):
        here = after
    return None if here is None else ((here[0],), here[1])


def _next_layer(layer: str, stages: Iterable[str]) -> str:
    """Return the layer of an operation by its stages and by the layer of the one before it."""
    found = {layer_of(stage) for stage in stages} - {""}
    if not found or layer in found:
        return layer
    later = [one for one in found if _number(one) > _number(layer)]
    return min(later or found, key=_number)


def _number(layer: str) -> int:
    """Return the number of a layer in the order of computing."""
    if layer in ("", "input"):
        return -1
    return _HEAD if layer == "head" else int(layer.removeprefix("layer "))


def _stages(recording: Recording, catalogue: Catalogue) -> dict[str, dict[str, float]]:
    """Return the stages that each value of a function matches, with distances, by its name."""
    return {
        name: catalogue.find(value) if isinstance(value, torch.Tensor) else {}
        for name, value in recording.values.items()
    }


def _excused(recording: Recording, stages: Mapping[str, Collection[str]]) -> set[str]:
    """Return the operations without a stage that a new stage is computed from.

    An operation is named by its first result.
    """
    fresh, returned = _fresh(recording, stages), recording.function.outputs
    good: set[str] = set()  # values that a new stage, or an excused operation, is computed from
    excused = set()
    for step in reversed(recording.steps):
        wrong = not any(stages[name] for name in step.names)
        if wrong and not good.isdisjoint(step.names) and returned.keys().isdisjoint(step.names):
            excused.add(step.names[0])
        elif wrong or step.names[0] not in fresh or step.operation in _LOSSY:
            continue
        good |= {name for name in recording.read_names(step) if name is not None}
    return excused


def _fresh(recording: Recording, stages: Mapping[str, Collection[str]]) -> set[str]:
    """Return the operations that are the first to compute a stage, named by their first result."""
    seen = {stage for name in recording.function.inputs for stage in stages[name]}
    fresh = set()
    for step in recording.steps:
        found = {stage for name in step.names for stage in stages[name]}
        if found - seen:
            fresh.add(step.names[0])
        seen |= found
    return fresh


def _divergence(
    recording: Recording,
    step: Step,
    stages: Mapping[str, Collection[str]],
    catalogue: Catalogue,
    layer: str,
) -> Divergence:
    result = recording.values[step.names[0]]
    nearest = catalogue.nearest(result)
    reason = "is not a value of the model"
    if nearest is not None and nearest[1] < _NEAR:
        reason += f"; it differs from {nearest[0]} by {nearest[1]:.3g} of the largest value"
    reads = {}
    for slot, name in zip(step.reads, recording.read_names(step), strict=True):
        if name is None:
            continue
        if recording.constant(slot) is not None:
            reads[name] = "a constant"
        else:
            reads[name] = " or ".join(list(stages.get(name, ()))[:2]) or "not a value of the model"
    shape = tuple(result.shape)
    return Divergence(recording.place, step.operation, step.names[0], shape, reads, reason, layer)


def with_weights(
    found: Divergence, recordings: Iterable[Recording], weights: Mapping[str, torch.Tensor]
) -> Divergence:
    """Return a divergence that names the weights among the constants that its operation reads.

    `weights` are the artifact's own: a constant that has the elements of one alone is that one.
    """
    reads = dict(found.reads)
    for recording in recordings:
        for step in recording.steps if recording.place == found.place else ():
            if step.names[0] == found.result:
                for slot, name in zip(step.reads, recording.read_names(step), strict=True):
                    if name is not None and (weight := _weight(recording.constant(slot), weights)):
                        reads[name] = f"the weight {weight}"
    return replace(found, reads=reads)


def _weight(constant: Any, weights: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the only weight that a constant holds, "" for none or several."""
    if isinstance(constant, PackedWeight):
        constant = constant.dequantized()
    if not isinstance(constant, torch.Tensor) or constant.numel() == 1:
        return ""
    apart = math.ceil(constant.numel() / _SAMPLED)
    sample = constant.reshape(-1)[::apart]
    same = [
        name
        for name, weight in weights.items()
        if weight.numel() == constant.numel()
        and distance(sample, weight.reshape(-1)[::apart]) < _ROUNDED
    ]
    return same[0] if len(same) == 1 else ""
