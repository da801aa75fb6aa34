"""Runs compiled blocks, and shows what they compute to who wants to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from harness.errors import HarnessError
from harness.mil.plan import Plan, Step
from harness.mil.types import TensorType

Observer = Callable[[Step, tuple[torch.Tensor, ...]], None]
_OBSERVERS: list[Observer] = []


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Show every operation's tensors, in every function that is called inside the block."""
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.remove(observer)


class Block:
    """A plan that can be run. Runs are independent of each other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._checked = False

    def run(self, slots: list[Any]) -> list[Any]:
        """Execute over slots in which the inputs stand; they hold the results afterwards.

        Raises HarnessError, naming the operation that failed.
        """
        for step in self.plan.steps:
            self._execute(step, slots)
        self._checked = True
        return slots

    def nested(self, inputs: Sequence[Any], captured: Sequence[Any]) -> tuple[Any, ...]:
        """Execute as a block in an operation: on its inputs, and what it takes from around it."""
        slots = list(self.plan.slots)
        for (slot, _), value in zip(self.plan.inputs.values(), inputs, strict=True):
            slots[slot] = value
        for (slot, _), value in zip(self.plan.captures, captured, strict=True):
            slots[slot] = value
        self.run(slots)
        return tuple(slots[slot] for slot in self.plan.results)

    def _execute(self, step: Step, slots: list[Any]) -> None:
        try:
            result = step.run(*[slots[slot] if slot >= 0 else None for slot in step.reads])
        except HarnessError:
            raise
        except Exception as error:
            raise HarnessError(f"{step.where}: {_first_line(error)}") from error
        results = result if isinstance(result, tuple) else (result,)
        if not self._checked:
            _check_results(results, step)
        if _OBSERVERS and all(isinstance(declared, TensorType) for declared in step.types):
            for observer in _OBSERVERS:
                observer(step, results)
        for slot, value in zip(step.writes, results, strict=True):
            slots[slot] = value
        for slot in step.frees:
            slots[slot] = None


def _check_results(results: tuple[Any, ...], step: Step) -> None:
    """Raise HarnessError when first results are not as many, and shaped, as declared."""
    if len(results) != len(step.types):
        raise HarnessError(
            f"{step.where}: gives {len(results)} results, the program declares {len(step.types)}"
        )
    for result, declared in zip(results, step.types, strict=True):
        if not declared.fits(result):
            have = f"shape {list(result.shape)}" if hasattr(result, "shape") else type(result)
            want = list(declared.shape) if isinstance(declared, TensorType) else declared
            raise HarnessError(f"{step.where}: gives {have}, the program declares {want}")


def _first_line(error: Exception) -> str:
    """Return an error in one line: what torch adds below it is about torch's own source."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
