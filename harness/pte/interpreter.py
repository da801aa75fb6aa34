"""Executes the instructions of a method of a .pte: delegate and kernel calls, moves and jumps.

A runtime executes the delegates; this module passes tensors to a delegate in the order of the names
in `metadata.json` and takes the results in that order. A buffer that a kernel writes in place keeps
its values from call to call. As in ExecuTorch's memory, it starts with the program's bytes, or with
zeros if the program has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from harness.artifact import Artifact, Delegate
from harness.artifact.files import MAX_ELEMENTS, max_elements
from harness.artifact.package import core_ml_shape
from harness.artifact.pte import (
    DelegateCall,
    FreeCall,
    Instruction,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    PteMethod,
    TensorValue,
    Value,
)
from harness.errors import ArtifactError, HarnessError
from harness.pte.kernels import call_kernel, writes_in_place

DelegateRunner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
DelegateFactory = Callable[[Delegate], DelegateRunner]
_MAX_STEPS = 1_000_000  # a jump backwards may loop; a method of a real model has a few hundred


class Interpreter:
    """Runs a method; `factory` makes the function that runs a Core ML delegate.

    `output_names` name the outputs in messages. Raises ArtifactError if a delegate does not belong
    to Core ML, or is not called with one tensor for each name.
    """

    def __init__(
        self,
        artifact: Artifact,
        method: str,
        factory: DelegateFactory,
        output_names: Sequence[str],
    ) -> None:
        assert artifact.pte is not None, "only a program has methods to interpret"
        self._plan = artifact.pte.methods[method]
        self._where = f"{artifact.path}, method '{method}'"
        self._output_names = output_names
        delegates = {d.index: d for d in artifact.delegates[method]}
        self._check_delegates(delegates)
        self._delegates = {index: (d, factory(d)) for index, d in delegates.items()}
        self._buffers = _buffers(self._plan, delegates.values(), self._where)

    def _check_delegates(self, delegates: dict[int, Delegate]) -> None:
        """Raise ArtifactError unless each call passes one tensor for each name."""
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
                        f"{self._where}, delegate {instruction.delegate}: '{name}' is passed as "
                        f"{kind}; a Core ML delegate takes and returns tensors only"
                    )

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Execute once on inputs that have been checked; results may share memory with them.

        Raises HarnessError that names the delegate or kernel at fault.
        """
        values = [_initial(value) for value in self._plan.values]
        for index, buffer in self._buffers.items():
            values[index] = buffer
        for index, given in zip(self._plan.inputs, inputs, strict=True):
            values[index] = given
        position = steps = 0
        while position < len(self._plan.instructions):
            steps += 1
            if steps > _MAX_STEPS:
                raise HarnessError(f"{self._where}: did not end after {_MAX_STEPS} instructions")
            position = self._execute(self._plan.instructions[position], values, position)
        self._buffers = {index: values[index] for index in self._buffers}
        return [
            self._made(values, index, f"output '{name}'")
            for index, name in zip(self._plan.outputs, self._output_names, strict=True)
        ]

    def _made(self, values: list[Any], index: int, what: str) -> Any:
        """Return a value; raises HarnessError that names `what` when it is not defined yet."""
        if values[index] is None and self._plan.values[index] is not None:
            raise HarnessError(f"{self._where}: {what} is value {index}, used before it is defined")
        return values[index]

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
        tensors = [values[index] for index in args[:split]]
        if any(tensor is None for tensor in tensors):
            for index, name in zip(args[:split], names.input_names, strict=True):
                self._made(values, index, f"delegate {number}'s input '{name}'")
        for index, name, result in zip(args[split:], names.output_names, run(tensors), strict=True):
            declared = self._plan.values[index]
            assert isinstance(declared, TensorValue), "checked at load"
            if not declared.shape and tuple(result.shape) == core_ml_shape(declared.shape):
                result = result.reshape(declared.shape)
            if not declared.allows(result.shape):
                raise HarnessError(
                    f"{self._where}, delegate {number}: output '{name}' has shape "
                    f"{list(result.shape)}, the program declares {list(declared.shape)}"
                )
            dtype: torch.dtype = getattr(torch, declared.dtype)
            if dtype.is_floating_point:  # a wider result stays wide
                dtype = torch.promote_types(dtype, result.dtype)
            values[index] = result if result.dtype == dtype else result.to(dtype)

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
    """Return a value before the first instruction: None for a tensor that is not a constant."""
    if isinstance(value, TensorValue):
        return None if value.data is None else torch.from_numpy(value.array().copy())
    return value


def _buffers(plan: PteMethod, delegates: Iterable[Delegate], where: str) -> dict[int, torch.Tensor]:
    """Return the buffers that keep their values from call to call, by index, before the first call.

    Raises ArtifactError for more elements than a program with these delegates may have.
    """
    written = {
        instruction.args[0]
        for instruction in plan.instructions
        if isinstance(instruction, KernelCall) and writes_in_place(instruction.operator)
    }
    declared = {
        index: value
        for index, value in enumerate(plan.values)
        if isinstance(value, TensorValue)
        and index not in plan.inputs
        and (index in written or value.initial is not None)
    }
    count = sum(math.prod(value.shape) for value in declared.values())
    if count > MAX_ELEMENTS:  # looking into the packages takes time
        packages = {id(d.bundle): d.bundle.package for d in delegates}.values()
        if count > (limit := max_elements(sum(package.size for package in packages))):
            raise ArtifactError(f"{where}: declares buffers of over {limit} elements")
    return {index: _first(value) for index, value in declared.items()}


def _first(value: TensorValue) -> torch.Tensor:
    if value.initial is None:
        return torch.zeros(value.shape, dtype=getattr(torch, value.dtype))
    return torch.from_numpy(replace(value, data=value.initial).array().copy())
