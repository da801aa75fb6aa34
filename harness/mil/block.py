"""Runs compiled blocks, and shows what they compute to who wants to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from harness.errors import HarnessError
from harness.mil.plan import Plan, Step
from harness.mil.straight import failed_step, straight_function
from harness.mil.types import TensorType

Observer = Callable[[Step, tuple[torch.Tensor, ...]], None]
_OBSERVERS: list[Observer] = []
_MOST_LINES = 50_000  # steps that are worth Python's compiler: a second of it


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Show every operation's tensors, in every function that is called inside the block."""
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.remove(observer)


class Block:
    """A plan that can be run. Runs are independent of each other.

    The first run checks what every step gives; from the second on, when nobody observes, the plan
    runs as one function.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._gives_tuple: list[bool] | None = None  # each step, once a run has been checked
        self._straight: Callable[[Sequence[Any]], tuple[Any, ...]] | None = None

    def run(self, slots: list[Any]) -> tuple[Any, ...]:
        """Execute over slots in which the inputs stand; return the results.

        Raises HarnessError, naming the operation that failed.
        """
        if self._gives_tuple is None or _OBSERVERS or len(self.plan.steps) > _MOST_LINES:
            return self._run_steps(slots)
        if self._straight is None:
            self._straight = straight_function(self.plan, self._gives_tuple)
        try:
            return self._straight(slots)
        except HarnessError:
            raise
        except Exception as error:
            step = failed_step(self.plan, error.__traceback__)
            if step is None:
                raise
            raise _failure(step, error) from error

    def nested(self, inputs: Sequence[Any], captured: Sequence[Any]) -> tuple[Any, ...]:
        """Execute as a block in an operation: on its inputs, and what it takes from around it."""
        slots = list(self.plan.slots)
        for (slot, _), value in zip(self.plan.inputs.values(), inputs, strict=True):
            slots[slot] = value
        for (slot, _), value in zip(self.plan.captures, captured, strict=True):
            slots[slot] = value
        return self.run(slots)

    def _run_steps(self, slots: list[Any]) -> tuple[Any, ...]:
        gives_tuple = [self._execute(step, slots) for step in self.plan.steps]
        results = tuple(slots[slot] for slot in self.plan.results)
        self._gives_tuple = gives_tuple
        return results

    def _execute(self, step: Step, slots: list[Any]) -> bool:
        """Execute one step; return whether it gave a tuple."""
        try:
            result = step.run(*[slots[slot] if slot >= 0 else None for slot in step.reads])
        except HarnessError:
            raise
        except Exception as error:
            raise _failure(step, error) from error
        results = result if isinstance(result, tuple) else (result,)
        if self._gives_tuple is None:
            _check_results(results, step)
        if _OBSERVERS and all(isinstance(declared, TensorType) for declared in step.types):
            for observer in _OBSERVERS:
                observer(step, results)
        for slot, value in zip(step.writes, results, strict=True):
            slots[slot] = value
        for slot in step.frees:
            slots[slot] = None
        return isinstance(result, tuple)


def _failure(step: Step, error: Exception) -> HarnessError:
    """Return an error in one line: what torch adds below it is about torch's own source."""
    first = str(error).partition("\n")[0]
    return HarnessError(f"{step.where}: {type(error).__name__}: {first}")


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
