"""Interprets a method of a .pte: delegate calls, kernel calls, moves and jumps.

What a delegate does is the runtime's own; this module hands it tensors in the order of
`metadata.json`'s names and takes the results in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from harness.artifact import Artifact, ArtifactError, Delegate
from harness.artifact.pte import (
    DelegateCall,
    FreeCall,
    Instruction,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    TensorValue,
    Value,
)
from harness.errors import HarnessError
from harness.runtimes.kernels import call_kernel
from harness.runtimes.signature import method_signature

DelegateRunner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
DelegateFactory = Callable[[Delegate], DelegateRunner]
_MOST_STEPS = 1_000_000  # a jump backwards may loop; a method of a real model has a few hundred


class ProgramMethod:
    """A method of a .pte, its Core ML delegates run by what ``factory`` makes of each."""

    def __init__(self, artifact: Artifact, method: str, factory: DelegateFactory) -> None:
        self.name = method
        self.inputs, self.outputs = method_signature(artifact, method)
        assert artifact.pte is not None, "a signature is a program's"
        self._plan = artifact.pte.methods[method]
        self._where = f"{artifact.path}, method '{method}'"
        delegates = {d.index: d for d in artifact.delegates[method]}
        self._check_delegates(delegates)
        self._delegates = {index: (d, factory(d)) for index, d in delegates.items()}

    def _check_delegates(self, delegates: dict[int, Delegate]) -> None:
        """Raise ArtifactError unless each call hands over as many tensors as there are names."""
        for instruction in self._plan.instructions:
            if not isinstance(instruction, DelegateCall):
                continue
            if instruction.delegate not in delegates:
                backend = self._plan.delegates[instruction.delegate].backend
                raise ArtifactError(
                    f"{self._where}: calls delegate {instruction.delegate} of {backend}; only "
                    "Core ML delegates can be executed"
                )
            names = delegates[instruction.delegate].names
            expected = len(names.input_names) + len(names.output_names)
            if len(instruction.args) != expected:
                raise ArtifactError(
                    f"{self._where}, delegate {instruction.delegate}: called with "
                    f"{len(instruction.args)} values, metadata.json names {expected}"
                )
            for name, index in zip(
                names.input_names + names.output_names, instruction.args, strict=True
            ):
                if not isinstance(self._plan.values[index], TensorValue):
                    kind = type(self._plan.values[index]).__name__
                    raise ArtifactError(
                        f"{self._where}, delegate {instruction.delegate}: '{name}' is handed over "
                        f"as {kind}; a Core ML delegate takes and gives tensors only"
                    )

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once; see `harness.runtimes.base.Method`. Results may share memory with inputs.

        Raises HarnessError, naming the input, delegate or kernel at fault.
        """
        values = [_initial(value) for value in self._plan.values]
        self._enter(values, tensors)
        position = steps = 0
        while position < len(self._plan.instructions):
            steps += 1
            if steps > _MOST_STEPS:
                raise HarnessError(f"{self._where}: did not end after {_MOST_STEPS} instructions")
            position = self._execute(self._plan.instructions[position], values, position)
        return tuple(
            self._made(values, index, f"output '{spec.name}'")
            for index, spec in zip(self._plan.outputs, self.outputs, strict=True)
        )

    def _made(self, values: list[Any], index: int, what: str) -> Any:
        """Return a value; raises HarnessError, naming ``what``, when nothing has made it yet."""
        if values[index] is None:
            raise HarnessError(f"{self._where}: {what} is value {index}, which nothing has made")
        return values[index]

    def _enter(self, values: list[Any], tensors: tuple[torch.Tensor, ...]) -> None:
        if len(tensors) != len(self.inputs):
            raise HarnessError(
                f"{self._where}: called with {len(tensors)} inputs, it has {len(self.inputs)}"
            )
        for index, spec, tensor in zip(self._plan.inputs, self.inputs, tensors, strict=True):
            if tuple(tensor.shape) != spec.shape:
                raise HarnessError(
                    f"{self._where}: input '{spec.name}' has shape {list(tensor.shape)}, "
                    f"declared is {list(spec.shape)}"
                )
            is_float = spec.dtype.startswith("float")
            if is_float != tensor.is_floating_point():
                raise HarnessError(
                    f"{self._where}: input '{spec.name}' is {tensor.dtype}, not {spec.dtype}"
                )
            values[index] = tensor if is_float else tensor.to(getattr(torch, spec.dtype))

    def _execute(self, instruction: Instruction, values: list[Any], position: int) -> int:
        """Execute one instruction; return the position of the next."""
        match instruction:
            case DelegateCall(number, args):
                self._delegate(number, args, values)
            case KernelCall(operator, args):
                self._kernel(operator, args, values)
            case MoveCall(source, target):
                values[target] = values[source]
            case JumpFalseCall(condition, destination):
                if not self._holds(values, condition):
                    return destination
            case FreeCall(freed):
                values[freed] = None
        return position + 1

    def _holds(self, values: list[Any], condition: int) -> bool:
        value = self._made(values, condition, "a jump's condition")
        if torch.is_tensor(value) and value.numel() != 1:
            shape = list(value.shape)
            raise HarnessError(f"{self._where}: a jump's condition has shape {shape}, not one bool")
        return bool(value)

    def _delegate(self, number: int, args: tuple[int, ...], values: list[Any]) -> None:
        delegate, run = self._delegates[number]
        names, split = delegate.names, len(delegate.names.input_names)
        tensors = [
            self._made(values, index, f"delegate {number}'s input '{name}'")
            for index, name in zip(args[:split], names.input_names, strict=True)
        ]
        for index, name, result in zip(args[split:], names.output_names, run(tensors), strict=True):
            declared = self._plan.values[index]
            assert isinstance(declared, TensorValue), "checked at load"
            if declared.shape == () and tuple(result.shape) == (1,):  # as Core ML gives a scalar
                result = result.reshape(())
            if tuple(result.shape) != declared.shape:
                raise HarnessError(
                    f"{self._where}, delegate {number}: output '{name}' has shape "
                    f"{list(result.shape)}, the program declares {list(declared.shape)}"
                )
            values[index] = result

    def _kernel(self, operator: str, args: tuple[int, ...], values: list[Any]) -> None:
        declared = [self._plan.values[index] for index in args]
        given = [
            [None if item == -1 else values[item] for item in value.items]
            if isinstance(value, ListValue)
            else values[index]
            for index, value in zip(args, declared, strict=True)
        ]
        results = call_kernel(operator, given, declared, self._where)
        # The last argument is the returned value: a tensor, or a list of them.
        last = declared[-1]
        targets = last.items if isinstance(last, ListValue) else args[-1:]
        for index, result in zip(targets, results, strict=True):
            values[index] = result


def _initial(value: Value) -> Any:
    """Return what a value is before the first instruction; a tensor that is no constant is None."""
    if isinstance(value, TensorValue):
        return None if value.data is None else torch.from_numpy(value.array().copy())
    return value
