"""A loaded function of an ML Program: call it with tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

from harness.artifact.package import Package
from harness.errors import HarnessError
from harness.mil.plan import Plan, Step, Weights, compile_function
from harness.mil.policy import Policy
from harness.mil.values import TensorType

Observer = Callable[[Step, tuple[torch.Tensor, ...]], None]
_OBSERVERS: list[Observer] = []


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Show every operation's results, in every function that is called inside the block."""
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.remove(observer)


class Function:
    """One function, compiled. Calls are independent of each other: a function holds no state."""

    def __init__(self, plan: Plan, policy: Policy, where: str) -> None:
        self._plan = plan
        self._policy = policy
        self._where = where
        self._checked = False

    @property
    def inputs(self) -> dict[str, TensorType]:
        """The inputs' declared types by name."""
        return {name: declared for name, (_, declared) in self._plan.inputs.items()}

    def constant(self, name: str) -> torch.Tensor | None:
        """Return the tensor of a constant or a weight that operations read, None for any other."""
        slot = self._plan.names.get(name)
        return None if slot is None else self._plan.slots[slot]

    @property
    def outputs(self) -> dict[str, TensorType]:
        """The outputs' declared types by name."""
        return {name: declared for name, (_, declared) in self._plan.outputs.items()}

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Execute; floats come back as the policy carries them. Results may share memory with
        inputs or constants: read them, do not write into them.

        Raises HarnessError, naming the function and the input or the operation, when an input is
        missing, unknown or misshapen, or an operation fails.
        """
        slots = list(self._plan.slots)
        if inputs.keys() != self._plan.inputs.keys():
            wrong = min(inputs.keys() ^ self._plan.inputs.keys())
            problem = "is missing" if wrong in self._plan.inputs else "is not one of its inputs"
            raise HarnessError(f"{self._where}: '{wrong}' {problem}")
        for name, (slot, declared) in self._plan.inputs.items():
            tensor = inputs[name]
            if not _fits(tensor.shape, declared):
                raise HarnessError(
                    f"{self._where}: input '{name}' has shape {list(tensor.shape)}, "
                    f"declared is {list(declared.shape)}"
                )
            slots[slot] = self._policy.enter(tensor, declared.dtype)
        for step in self._plan.steps:
            self._execute(step, slots)
        self._checked = True
        return {name: slots[slot] for name, (slot, _) in self._plan.outputs.items()}  # type: ignore[misc]

    def _execute(self, step: Step, slots: list[torch.Tensor | None]) -> None:
        try:
            result = step.run(*[slots[slot] if slot >= 0 else None for slot in step.reads])
        except Exception as error:
            raise HarnessError(f"{step.where}: {type(error).__name__}: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        if not self._checked:
            _check_results(results, step)
        for observer in _OBSERVERS:
            observer(step, results)
        for slot, value in zip(step.writes, results, strict=True):
            slots[slot] = value
        for slot in step.frees:
            slots[slot] = None


def _check_results(results: tuple[torch.Tensor, ...], step: Step) -> None:
    """Raise HarnessError when a first result is not shaped as the program declares."""
    for result, declared in zip(results, step.types, strict=True):
        if not _fits(result.shape, declared):
            raise HarnessError(
                f"{step.where}: gives shape {list(result.shape)}, "
                f"the program declares {list(declared.shape)}"
            )


def _fits(shape: torch.Size, declared: TensorType) -> bool:
    return len(shape) == len(declared.shape) and all(
        want is None or have == want for have, want in zip(shape, declared.shape, strict=True)
    )


_SHARED: WeakKeyDictionary[Package, dict[str, Weights]] = WeakKeyDictionary()


def load_function(package: Package, function: str, policy: Policy) -> Function:
    """Load a function; functions of one package share the tensors of the weights they share.

    Raises ArtifactError, as `compile_function` does.
    """
    weights = _SHARED.setdefault(package, {}).setdefault(policy.name, {})
    where = f"{package.what}, function '{function}'"
    return Function(compile_function(package, function, policy, weights), policy, where)
