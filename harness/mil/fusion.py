"""Plans with fewer steps: one step computes what several steps compute, and gives their values.

Only generated code is fused: an observer sees the plan as it was compiled. A policy that rounds
each result fuses nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.mil.block import Plan, Step, with_frees
from harness.mil.packed import PackedLinears, PackedWeight
from harness.mil.policy import Policy


def fused(plan: Plan, policy: Policy) -> Plan:
    """Return a plan that computes the same results in fewer steps.

    Linears with packed weights that read one input become one step, at the place of the first:
    exporters split wide linears, and a layer's queries, keys and values have one input.
    """
    if policy.rounds_half:
        return plan
    groups: dict[tuple[int, int], list[Step]] = {}
    for step in plan.steps:
        if _is_packed_linear(plan, step):
            columns = plan.slots[step.reads[1]].shape[1]
            groups.setdefault((step.reads[0], columns), []).append(step)
    joined = {group[0].writes: _joined(plan, group) for group in groups.values() if len(group) > 1}
    gone = {step.writes for group in groups.values() for step in group[1:]}
    steps = [joined.get(step.writes, step) for step in plan.steps if step.writes not in gone]
    constants = {slot for slot, value in enumerate(plan.slots) if value is not None}
    return replace(plan, steps=with_frees(steps, {*plan.results} | constants))


def _is_packed_linear(plan: Plan, step: Step) -> bool:
    """Return whether a step multiplies by a packed weight that joins others, and adds nothing."""
    if step.operation != "linear":
        return False
    weight, bias = (plan.slots[slot] if slot >= 0 else None for slot in step.reads[1:])
    adds = step.reads[2] >= 0 and not (isinstance(bias, torch.Tensor) and not bias.any())
    return isinstance(weight, PackedWeight) and weight.has_tables and not adds


def _joined(plan: Plan, group: list[Step]) -> Step:
    return Step(
        run=PackedLinears([plan.slots[step.reads[1]] for step in group]),
        reads=group[0].reads[:1],
        writes=tuple(slot for step in group for slot in step.writes),
        frees=(),
        where=group[0].where,
        types=tuple(declared for step in group for declared in step.types),
        operation="linear",
        names=tuple(name for step in group for name in step.names),
    )
