"""A loaded function of an ML Program: call it with tensors by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from harness.artifact.package import Package
from harness.errors import ArtifactError, HarnessError
from harness.mil.block import Block, Plan
from harness.mil.compile import compile_function
from harness.mil.fusion import fused
from harness.mil.packed import PackedWeight, multiplied_by
from harness.mil.packed.layouts import FEW_ROWS
from harness.mil.policy import Policy
from harness.mil.storage import SharedTensors, State
from harness.mil.types import (
    AllowedShapes,
    StateType,
    TensorType,
    ValueType,
    allowed_shapes,
    check_shapes,
)

_SMALL_RESULT = 1 << 17  # elements: one step of a language model, with its caches
_SMALL_CONSTANT = 1 << 16


class Function:
    """One compiled function; calls share only the `State` that the caller passes.

    `inputs`, `states` and `outputs` are the declared types by name; a classifier's labels and
    probabilities are not tensors. `allowed` has the shapes that flexible inputs may have.
    """

    def __init__(
        self, plan: Plan, policy: Policy, where: str, allowed: Mapping[str, AllowedShapes]
    ) -> None:
        self._plan = plan
        self._block = Block(plan, partial(fused, policy=policy))
        self._is_small = _is_small(plan)
        self._policy = policy
        self._where = where
        self.allowed = allowed
        self.inputs: dict[str, TensorType] = {}
        self.states: dict[str, TensorType] = {}
        self._as_carried: dict[str, tuple[Any, torch.dtype]] = {}  # shape, dtype without conversion
        for name, (_, declared) in plan.inputs.items():
            if isinstance(declared, StateType):
                self.states[name] = declared.wrapped
            elif isinstance(declared, TensorType):
                self.inputs[name] = declared
                if not policy.rounds_half:
                    self._as_carried[name] = declared.shape, policy.carrier(declared.dtype)
            else:
                raise HarnessError(f"{where}: input '{name}' is neither a tensor nor a state")

    def constant(self, name: str) -> torch.Tensor | None:
        """Return the tensor of a constant or a weight that operations read, None for other names.

        Each call dequantizes a packed weight again.
        """
        slot = self._plan.names.get(name)
        value = None if slot is None else self._plan.slots[slot]
        return value.dequantized() if isinstance(value, PackedWeight) else value

    @property
    def plan(self) -> Plan:
        """The compiled plan, for tools that need single operations."""
        return self._plan

    @property
    def policy(self) -> Policy:
        """The policy that sets the dtypes of numbers."""
        return self._policy

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs' declared types by name."""
        return {name: declared for name, (_, declared) in self._plan.outputs.items()}

    def new_state(self) -> State:
        """Return a new state for calls, all zeros."""
        return State(self.states, self._policy)

    @torch.inference_mode()
    def __call__(
        self, inputs: Mapping[str, torch.Tensor], state: State | None = None
    ) -> dict[str, Any]:
        """Execute the function; return the outputs by name, floats in the policy's dtype.

        Results may share memory with inputs or constants: do not write to them. A function with
        states needs a state, which the call reads and changes. A classifier's label is a str or an
        int, its probabilities are a dict.

        Raise HarnessError that names the function and the input or the operation when an input is
        missing, unknown, misshapen or of the wrong kind, or an operation fails.
        """
        if inputs.keys() != self.inputs.keys():
            wrong = min(inputs.keys() ^ self.inputs.keys())
            problem = "is missing" if wrong in self.inputs else "is not one of its inputs"
            raise HarnessError(f"{self._where}: '{wrong}' {problem}")
        if self.states and state is None:
            names = ", ".join(self.states)
            raise HarnessError(f"{self._where}: has states ({names}); call it with a state")
        if self.allowed:
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            check_shapes(self.allowed, shapes, self._where)
        slots = list(self._plan.slots)
        for name, (slot, declared) in self._plan.inputs.items():
            slots[slot] = self._entered(name, inputs.get(name), state, declared)
        with _one_thread() if self._is_small else nullcontext():
            results = dict(zip(self._plan.results, self._block.run(slots), strict=True))
        return {name: results[slot] for name, (slot, _) in self._plan.outputs.items()}

    def _entered(
        self, name: str, tensor: torch.Tensor | None, state: State | None, declared: ValueType
    ) -> Any:
        shape_and_dtype = self._as_carried.get(name)
        if isinstance(tensor, torch.Tensor) and (tensor.shape, tensor.dtype) == shape_and_dtype:
            return tensor
        if (
            isinstance(declared, TensorType)
            and isinstance(tensor, torch.Tensor)
            and declared.fits(tensor)
            and (declared.is_float or not tensor.is_floating_point())
        ):
            return self._policy.enter(tensor, declared.dtype)
        where = f"{self._where}: input '{name}'"
        if isinstance(declared, StateType) and state is not None:
            return state.cell(name, declared.wrapped, self._policy, where)
        if not isinstance(declared, TensorType) or not isinstance(tensor, torch.Tensor):
            raise HarnessError(f"{where} is of type {type(tensor).__name__}, not a tensor")
        if not declared.fits(tensor):
            raise HarnessError(
                f"{where} has shape {list(tensor.shape)}, not the declared {list(declared.shape)}"
            )
        raise HarnessError(f"{where} is {tensor.dtype}, not the declared {declared.dtype.name}")


_SHARED: WeakKeyDictionary[Package, dict[str, SharedTensors]] = WeakKeyDictionary()


def load_function(
    package: Package, function: str, policy: Policy, *, stateful: bool = False
) -> Function:
    """Load a function; the functions of one package share the tensors of their weights.

    With `stateful` the function may have states; the caller then passes a `State` to each call.
    Raise ArtifactError for states without `stateful`, and for the reasons of `compile_function`.
    """
    shared = _SHARED.setdefault(package, {}).setdefault(policy.name, SharedTensors())
    where = f"{package.what}, function '{function}'"
    plan = compile_function(package, function, policy, shared)
    loaded = Function(plan, policy, where, allowed_shapes(package, function))
    if loaded.states and not stateful:
        raise ArtifactError(
            f"{where}: has a value of kind stateType ({', '.join(loaded.states)}); a caller that "
            "keeps no state can pass tensors only"
        )
    return loaded


def _is_small(plan: Plan) -> bool:
    """Return whether every result, constant and product of a plan is too small for two threads.

    Waking a second thread takes about ten microseconds, longer than a small operation. torch does
    it for a few thousand elements or more.
    """
    for value in plan.slots:
        if isinstance(value, torch.Tensor) and value.numel() > _SMALL_CONSTANT:
            return False
    for step in plan.steps:
        results = [declared for declared in step.types if isinstance(declared, TensorType)]
        if any(not t.is_fixed or t.count > _SMALL_RESULT for t in results):
            return False
        packed = [plan.slots[slot] for slot in step.reads if slot >= 0]
        for weight in packed:
            if isinstance(weight, PackedWeight) and results[0].count > FEW_ROWS * weight.shape[0]:
                return False
    return True


@contextmanager
def _one_thread() -> Iterator[None]:
    """Make torch compute in the calling thread only; packed weights keep their threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with multiplied_by(count):
            yield
    finally:
        torch.set_num_threads(count)
