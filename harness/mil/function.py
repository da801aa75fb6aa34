"""A loaded function of an ML Program: call it with tensors by name.

Calls that differ in few inputs need not compute everything again: see `repeated`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from harness.artifact.package import Package
from harness.errors import ArtifactError, HarnessError
from harness.mil.block import Block, Plan, Step, with_frees
from harness.mil.compile import compile_function
from harness.mil.fusion import fused
from harness.mil.packed import PackedWeight, multiplied_by
from harness.mil.packed.layouts import FEW_ROWS
from harness.mil.storage import SharedTensors, State
from harness.mil.types import (
    AllowedShapes,
    Policy,
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
        fuse = partial(fused, policy=policy)
        self._block, self._repeats = Block(plan, fuse), Repeats(plan, fuse)
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

    def stored(self, name: str) -> torch.Tensor | PackedWeight | None:
        """Return a constant or a weight that operations read, None for other names."""
        slot = self._plan.names.get(name)
        return None if slot is None else self._plan.slots[slot]

    def constant(self, name: str) -> torch.Tensor | None:
        """Return the tensor of `stored`; each call dequantizes a packed weight again."""
        value = self.stored(name)
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
            results = dict(
                zip(self._plan.results, self._repeats.run(self._block, slots), strict=True)
            )
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


_Carriers = tuple[torch.dtype, ...]
_SHARED: WeakKeyDictionary[Package, dict[_Carriers, SharedTensors]] = WeakKeyDictionary()


def load_function(
    package: Package, function: str, policy: Policy, *, stateful: bool = False
) -> Function:
    """Load a function; the functions of one package share the tensors of their weights.

    With `stateful` the function may have states; the caller then passes a `State` to each call.
    Raise ArtifactError for states without `stateful`, and for the reasons of `compile_function`.
    """
    kind = tuple(policy.carriers.values())  # policies that carry alike share tensors
    shared = _SHARED.setdefault(package, {}).setdefault(kind, SharedTensors())
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


# --- repeated calls

_OPEN: list[list[Repeats]] = []  # for each `with`, the functions that were called in it


@contextmanager
def repeated() -> Iterator[None]:
    """Keep values from call to call of a function, inside the `with`.

        with repeated():
            for position in range(64):
                method(tokens, mask, ..., position)  # the layers run twice, the output 64 times

    The first call runs the whole plan. The next one shows which inputs change; its plan is cut in
    two. The first part, which does not depend on them, runs once more, and its values are kept; the
    second part runs in each call. Functions with states or random numbers run whole.
    """
    _OPEN.append([])
    try:
        yield
    finally:
        for one in _OPEN.pop():
            one.forget()


_UNREPEATABLE = ("random_", "cond", "while_loop")  # the last two may have random numbers inside


class Repeats:
    """The calls of one plan; `fuse` makes fewer steps of each part."""

    def __init__(self, plan: Plan, fuse: Callable[[Plan], Plan]) -> None:
        self._plan, self._fuse = plan, fuse
        self._inputs = [slot for slot, _ in plan.inputs.values()]
        self._can_repeat = not any(
            step.operation.startswith(_UNREPEATABLE) for step in plan.steps
        ) and not any(isinstance(declared, StateType) for _, declared in plan.inputs.values())
        self._parts: dict[frozenset[int], tuple[Block, Block] | None] = {}
        self.forget()

    def forget(self) -> None:
        """Forget the calls, and free their values."""
        self._before: dict[int, torch.Tensor] = {}  # the inputs of the last call of the whole plan
        self._varying: frozenset[int] = frozenset()
        self._kept: tuple[object, ...] | None = None

    def run(self, whole: Block, slots: list[object]) -> tuple[object, ...]:
        """Run over slots that hold the inputs; return the results of the `whole` block."""
        if not _OPEN or not self._can_repeat:
            return whole.run(slots)
        if self not in _OPEN[-1]:
            _OPEN[-1].append(self)
        given = {slot: slots[slot] for slot in self._inputs}
        changed = frozenset(s for s, value in given.items() if not _same(self._before, s, value))
        if self._kept is None or not changed <= self._varying:
            parts = self._cut(changed) if self._before else None
            if parts is None:
                self.forget()
                self._before = {
                    s: v.clone() for s, v in given.items() if isinstance(v, torch.Tensor)
                }
                return whole.run(slots)
            self._varying = changed
            made = parts[0].run(list(slots))
            self._kept = tuple(_copy(v) if isinstance(v, torch.Tensor) else v for v in made)
        parts = self._parts[self._varying]
        assert parts is not None
        first, second = parts
        again = list(second.plan.slots)
        for slot in self._varying:
            again[slot] = slots[slot]
        for slot, value in zip(first.plan.results, self._kept or (), strict=True):
            again[slot] = value
        return second.run(again)

    def _cut(self, varying: frozenset[int]) -> tuple[Block, Block] | None:
        """Return what does not depend on some inputs, and the rest; None if that is the most."""
        if varying not in self._parts:
            self._parts[varying] = self._new_parts(varying)
        return self._parts[varying]

    def _new_parts(self, varying: frozenset[int]) -> tuple[Block, Block] | None:
        plan, moved = self._plan, set(varying)
        first: list[Step] = []
        second: list[Step] = []
        for step in plan.steps:
            moves = not moved.isdisjoint(step.reads)
            (second if moves else first).append(step)
            moved |= set(step.writes) if moves else set()
        if 2 * len(second) > len(plan.steps):
            return None
        types = dict(plan.inputs.values())
        for step in first:
            types |= dict(zip(step.writes, step.types, strict=True))
        read = {slot for step in second for slot in step.reads} | {*plan.results}
        kept = sorted(slot for slot in read - moved if slot in types and plan.slots[slot] is None)
        if not all(isinstance(types[slot], TensorType) for slot in kept):
            return None
        given = {n: pair for n, pair in plan.inputs.items() if pair[0] in varying}
        given |= {f"kept {slot}": (slot, types[slot]) for slot in kept}
        return self._block(first, kept, plan.inputs), self._block(second, plan.results, given)

    def _block(
        self, steps: list[Step], results: Sequence[int], inputs: dict[str, tuple[int, ValueType]]
    ) -> Block:
        constants = {slot for slot, value in enumerate(self._plan.slots) if value is not None}
        ordered = with_frees(steps, {*results, *constants})
        cut = replace(self._plan, steps=ordered, results=tuple(results), inputs=inputs)
        return Block(cut, self._fuse)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)  # it may be the caller's own input


def _same(before: dict[int, torch.Tensor], slot: int, value: object) -> bool:
    old = before.get(slot)
    return old is not None and isinstance(value, torch.Tensor) and torch.equal(old, value)
