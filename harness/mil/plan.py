"""What compiling gives: a list of steps over numbered slots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.mil.operation import Run
from harness.mil.types import ValueType


@dataclass(frozen=True)
class Step:
    """One operation: what to call, the slots it reads (-1: absent), writes, and may free.

    `names` are those of its results, `types` what the program declares of them.
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

    `slots` is the state before a run, with all constants in place; `names` gives the slot of
    every named value; `results` the slots of the outputs, in order; `captures` the slots that
    a nested block fills from the block around it: (its own, the other's).
    """

    inputs: dict[str, tuple[int, ValueType]]
    outputs: dict[str, tuple[int, ValueType]]
    results: tuple[int, ...]
    steps: tuple[Step, ...]
    slots: tuple[Any, ...]
    names: dict[str, int]
    captures: tuple[tuple[int, int], ...]


def with_frees(steps: list[Step], kept: set[int]) -> tuple[Step, ...]:
    """Let each step free the slots that nothing after it reads."""
    seen = set(kept)
    result = []
    for step in reversed(steps):
        last = {slot for slot in (*step.reads, *step.writes) if slot >= 0} - seen
        seen |= last
        result.append(replace(step, frees=tuple(last)))
    return tuple(reversed(result))
