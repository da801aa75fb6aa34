"""The tensors of constants and weights that the functions of one package share."""

from __future__ import annotations

import torch

from harness.mil.operation import Operation, Run
from harness.mil.policy import Policy
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
