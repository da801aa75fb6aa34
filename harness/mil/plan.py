"""A plan, the result of compiling: a list of steps over numbered slots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.mil.operation import Run
from harness.mil.types import ValueType


@dataclass(frozen=True)
class Step:
    """One operation: its function, and the slots that it reads (-1: absent), writes and frees.

    `names` and `types` are the names and the declared types of its results.
    """

    run: Run
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    where: str
    types: tuple[ValueType, ...]
    operation: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A compiled block.

    `slots` are the values before a run: all constants, and None for the rest. `names` maps a value
    to its slot. `results` are the slots of the outputs, in order. `captures` are the slots that a
    nested block fills from the block around it, as pairs (its own slot, the outer slot).
    """

    inputs: dict[str, tuple[int, ValueType]]
    outputs: dict[str, tuple[int, ValueType]]
    results: tuple[int, ...]
    steps: tuple[Step, ...]
    slots: tuple[Any, ...]
    names: dict[str, int]
    captures: tuple[tuple[int, int], ...]


def with_frees(steps: list[Step], kept: set[int]) -> tuple[Step, ...]:
    """Return the steps; each frees the slots that no later step reads."""
    seen = set(kept)
    result = []
    for step in reversed(steps):
        last = {slot for slot in (*step.reads, *step.writes) if slot >= 0} - seen
        seen |= last
        result.append(replace(step, frees=tuple(last)))
    return tuple(reversed(result))
