"""The first operation whose result is no value of the model's graph.

An operation's result is looked for among the stages of the graph. One that is no stage is not yet
wrong: an exporter may compute a stage in its own way. It is *excused* when a stage that was not
there before comes out of it after all, through operations that are no stages either: errors do
not heal. Two things are no such proof: an old stage, as when x + 0 is x again, and what may leave
out the part that is wrong, as a selection and a whole number do. What a function returns is never
excused.

The first operation that is neither a stage nor excused is where the program leaves the model: what
is before it is right, so it is the culprit and no victim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.divergence.match import Catalogue
from harness.divergence.recording import Place, Recording
from harness.mil.plan import Step

_NEAR = 0.25  # of the largest value: a stage that is further away tells nothing
_SLICES = ("slice_by_index", "slice_by_size", "split")
_SELECTIONS = ("gather", "gather_along_axis", "gather_nd", "select", "topk", *_SLICES)
_LOSSY = ("floor", "ceil", "round", "sign", *_SELECTIONS)


@dataclass(frozen=True)
class Divergence:
    """An operation that leaves its reference.

    `result` is its first result's name, `shape` the shape; `reads` says of each input by name
    what it holds; `reason` is a sentence's end: "is no value of the model: ...".
    """

    place: Place
    operation: str
    result: str
    shape: tuple[int, ...]
    reads: Mapping[str, str]
    reason: str

    def __str__(self) -> str:
        reads = "; ".join(f"'{name}' ({what})" for name, what in self.reads.items())
        return (
            f"{self.place}: {self.operation} '{self.result}' {list(self.shape)} {self.reason}\n"
            f"  it reads {reads or 'nothing'}"
        )


@dataclass(frozen=True)
class Comparison:
    """What comparing one call with the graph gave: how many operations hold a stage, how many
    are excused, and the first that is neither."""

    matched: int
    excused: int
    first: Divergence | None


def compare(recordings: Sequence[Recording], catalogue: Catalogue) -> Comparison:
    """Look at the operations of one call of a method, function after function."""
    matched = excused = 0
    for recording in recordings:
        stages = _stages(recording, catalogue)
        pardoned = _excused(recording, stages)
        for step in recording.steps:
            name = step.names[0]
            matched += bool(stages[name])
            excused += name in pardoned
            if not stages[name] and name not in pardoned:
                return Comparison(matched, excused, _divergence(recording, step, stages, catalogue))
    return Comparison(matched, excused, None)


def _stages(recording: Recording, catalogue: Catalogue) -> dict[str, list[str]]:
    """The stages that each value of a function is, by its name."""
    return {
        name: catalogue.find(value) if isinstance(value, torch.Tensor) else []
        for name, value in recording.values.items()
    }


def _excused(recording: Recording, stages: Mapping[str, list[str]]) -> set[str]:
    """The operations without a stage, by their first result, out of which a new one comes."""
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


def _fresh(recording: Recording, stages: Mapping[str, list[str]]) -> set[str]:
    """The operations, by their first result, that hold a stage which nothing before them holds."""
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
    stages: Mapping[str, list[str]],
    catalogue: Catalogue,
) -> Divergence:
    result = recording.values[step.names[0]]
    nearest = catalogue.nearest(result)
    reason = "is no value of the model"
    if nearest is not None and nearest[1] < _NEAR:
        reason += f"; it is off from {nearest[0]} by {nearest[1]:.3g} of the largest"
    reads = {}
    for slot, name in zip(step.reads, recording.read_names(step), strict=True):
        if name is None:
            continue
        if recording.constant(slot) is not None:
            reads[name] = "a constant"
        else:
            reads[name] = " or ".join(stages[name][:2]) or "no value of the model"
    shape = tuple(result.shape)
    return Divergence(recording.place, step.operation, step.names[0], shape, reads, reason)
