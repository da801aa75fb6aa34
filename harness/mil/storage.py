"""The tensors that outlive a call: shared constants and weights, and the states of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from harness.errors import HarnessError
from harness.mil.operation import Operation, Run
from harness.mil.types import Policy, TensorType
from harness.mil.values import Constant

_SMALL = 64  # elements up to which a constant in the program's text is compared by its values

_Source = tuple[object, ...]
"""The source of a tensor, a file and an offset or the values themselves, with its type."""


class SharedTensors:
    """The tensors that have been made of a package's weights under one policy."""

    def __init__(self) -> None:
        self._constants: dict[_Source, torch.Tensor] = {}
        self._made: dict[_Source, tuple[tuple[torch.Tensor, ...], tuple[object, ...]]] = {}

    def constant(self, constant: Constant, policy: Policy) -> torch.Tensor:
        """Return a constant's tensor; a weight in a file becomes a tensor once only."""
        key = (constant.weight, constant.type)
        if key in self._constants:
            return self._constants[key]
        tensor = policy.constant(constant.tensor(), constant.type.dtype)
        if constant.weight is not None:
            self._constants[key] = tensor
        return tensor

    def constexpr(self, operation: Operation, make: Run) -> tuple[torch.Tensor, ...]:
        """Return a constexpr operation's results; equal operations are computed once."""
        key = _key(operation)
        if key is not None and key in self._made:
            return self._made[key][0]
        result = make()
        results = result if isinstance(result, tuple) else (result,)
        if key is not None:
            # the weights are kept too: the key holds their ids
            self._made[key] = (results, tuple(operation.weights.values()))
        return results


def _key(operation: Operation) -> _Source | None:
    """Return the sources of a constexpr operation, None when they are too large to compare."""
    sources: list[_Source] = [
        (name, id(tensor)) for name, tensor in sorted(operation.weights.items())
    ]
    for name, constants in sorted(operation.constants.items()):
        for constant in constants:
            if constant.weight is None and constant.type.count > _SMALL:
                return None
            values = None if constant.weight else str(constant.python)
            sources.append((name, constant.type, constant.weight, values))
    return operation.type, operation.outputs, tuple(sources)


@dataclass
class StateCell:
    """The tensor of one state; a write replaces it, so that tensors read earlier do not change."""

    declared: TensorType
    value: torch.Tensor


class State:
    """A tensor for each state of a function, initially zero.

    A call continues from the last call with the same `State`, even one of another function.
    """

    def __init__(self, types: Mapping[str, TensorType], policy: Policy) -> None:
        self._policy = policy
        self._cells = {name: _zero(declared, policy) for name, declared in types.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the states."""
        return tuple(self._cells)

    def cell(self, name: str, declared: TensorType, policy: Policy, where: str) -> StateCell:
        """Return the cell that a function reads and writes.

        Raise HarnessError when the name is unknown, or the function declares another type.
        """
        cell = self._cell(name, f"{where}: ")
        if cell.declared != declared or policy.name != self._policy.name:
            raise HarnessError(
                f"{where}: the state is {cell.declared} under policy {self._policy.name}, "
                f"the function declares {declared} and runs under {policy.name}"
            )
        return cell

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of a state's tensor, in the policy's dtype."""
        return self._cell(name).value.clone()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Replace a state's tensor by a copy; raise HarnessError for another shape."""
        cell = self._cell(name)
        if tuple(tensor.shape) != cell.declared.shape:
            raise HarnessError(
                f"state '{name}' has shape {list(cell.declared.shape)}; "
                f"a tensor of shape {list(tensor.shape)} cannot be written to it"
            )
        cell.value = self._policy.enter(tensor, cell.declared.dtype).clone()

    def _cell(self, name: str, where: str = "") -> StateCell:
        if name not in self._cells:
            names = ", ".join(self._cells) or "none"
            raise HarnessError(f"{where}no state '{name}'; the states: {names}")
        return self._cells[name]


def _zero(declared: TensorType, policy: Policy) -> StateCell:
    shape = [size or 0 for size in declared.shape]
    return StateCell(declared, torch.zeros(shape, dtype=policy.carrier(declared.dtype)))
