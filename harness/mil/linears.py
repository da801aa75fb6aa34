"""Linears with packed weights that read one input, as one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from harness.mil.block import Plan, Step
from harness.mil.operation import Run
from harness.mil.packed import PackedLinears, PackedWeight


def with_joined_linears(plan: Plan, steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps; linears that join are one step, at the place of the first.

    Exporters split wide linears, and a layer's queries, keys and values have one input.
    """
    steps = list(steps)
    groups: dict[tuple[int, int], list[Step]] = {}
    for step in steps:
        if is_packed_linear(plan, step):
            columns = plan.slots[step.reads[1]].shape[1]
            groups.setdefault((step.reads[0], columns), []).append(step)
    first = {group[0].writes: group for group in groups.values()}
    gone = {step.writes for group in groups.values() for step in group[1:]}
    for step in steps:
        group = first.get(step.writes, [step])
        if len(group) > 1:
            yield _joined(plan, group)
        elif step.writes not in gone:
            yield step


def is_packed_linear(plan: Plan, step: Step) -> bool:
    """Return whether a step multiplies by a packed weight that joins others, and adds nothing."""
    if step.operation != "linear" or step.fused:
        return False
    weight, bias = (plan.slots[slot] if slot >= 0 else None for slot in step.reads[1:])
    adds = step.reads[2] >= 0 and not (isinstance(bias, Tensor) and not bias.any())
    return isinstance(weight, PackedWeight) and weight.has_tables and not adds


def _joined(plan: Plan, group: list[Step]) -> Step:
    weights = [plan.slots[step.reads[1]] for step in group]
    return merged(group, PackedLinears(weights), group[0].reads[:1])


def merged(group: list[Step], run: Run, reads: tuple[int, ...]) -> Step:
    """Return a step that writes what the steps of a group write."""
    return replace(
        group[-1],
        run=run,
        reads=reads,
        writes=tuple(slot for step in group for slot in step.writes),
        types=tuple(declared for step in group for declared in step.types),
        names=tuple(name for step in group for name in step.names),
        constants={},
        fused=True,
    )
