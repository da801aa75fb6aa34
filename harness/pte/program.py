"""A method of a .pte as a `Method`: its inputs are checked, its instructions interpreted."""

from __future__ import annotations

import torch

from harness.artifact import Artifact
from harness.artifact.pte import TensorValue
from harness.errors import HarnessError
from harness.pte.interpreter import DelegateFactory, DelegateRunner, Interpreter
from harness.pte.signature import method_signature

__all__ = ["DelegateFactory", "DelegateRunner", "ProgramMethod"]


class ProgramMethod:
    """A method of a .pte, its Core ML delegates run by what `factory` makes of each."""

    def __init__(self, artifact: Artifact, method: str, factory: DelegateFactory) -> None:
        self.name = method
        self.inputs, self.outputs = method_signature(artifact, method)
        assert artifact.pte is not None, "a signature is a program's"
        plan = artifact.pte.methods[method]
        self._declared = [plan.values[index] for index in plan.inputs]
        self._where = f"{artifact.path}, method '{method}'"
        names = [spec.name for spec in self.outputs]
        self._interpreter = Interpreter(artifact, method, factory, names)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once; see `harness.runtimes.base.Method`. Results may share memory with inputs.

        Raises HarnessError, naming the input, delegate or kernel at fault.
        """
        return tuple(self._interpreter.run(self._entered(tensors)))

    def _entered(self, tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        if len(tensors) != len(self.inputs):
            raise HarnessError(
                f"{self._where}: called with {len(tensors)} inputs, it has {len(self.inputs)}"
            )
        entered = []
        for declared, spec, tensor in zip(self._declared, self.inputs, tensors, strict=True):
            assert isinstance(declared, TensorValue), "a signature holds tensors"
            if not declared.allows(tensor.shape):
                raise HarnessError(
                    f"{self._where}: input '{spec.name}' has shape {list(tensor.shape)}, "
                    f"declared is {list(spec.shape)}"
                )
            is_float = spec.dtype.startswith("float")
            if is_float != tensor.is_floating_point():
                raise HarnessError(
                    f"{self._where}: input '{spec.name}' is {tensor.dtype}, not {spec.dtype}"
                )
            entered.append(tensor if is_float else tensor.to(getattr(torch, spec.dtype)))
        return entered
