"""`mil:strict`, `mil:widen` and `mil:double`: our ML Program executor, on any machine."""

from __future__ import annotations

import torch

from harness.artifact import Artifact, Delegate
from harness.errors import ArtifactError
from harness.mil import Function, Policy, TensorType, get_policy, load_function
from harness.pte import TensorSpec
from harness.pte.interpreter import DelegateRunner
from harness.pte.program import ProgramMethod, call_function, mil_delegate
from harness.runtimes.base import Method


class MilRuntime:
    """Executes a .pte's Core ML delegates, or the functions of an .mlpackage."""

    def __init__(self, policy: str) -> None:
        self._policy = get_policy(policy)
        self.name = f"mil:{policy}"

    def unavailable(self) -> str | None:
        """Return None: this runtime runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method, or a function of an .mlpackage.

        Raises HarnessError, naming function and operation, when the program cannot be executed.
        """
        if artifact.package is not None:
            return _PackageMethod(
                method, load_function(artifact.package, method, self._policy), self._policy
            )
        return ProgramMethod(artifact, method, self._delegate)

    def _delegate(self, delegate: Delegate) -> DelegateRunner:
        return mil_delegate(delegate, self._policy)


class _PackageMethod:
    """A function of an .mlpackage, called in the order of its declared inputs."""

    def __init__(self, name: str, function: Function, policy: Policy) -> None:
        self.name = name
        self._function = function
        self._policy = policy
        self.inputs = tuple(_spec(n, t) for n, t in function.inputs.items())
        self.outputs = tuple(_spec(n, t) for n, t in function.outputs.items())

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = [spec.name for spec in self.inputs]
        outputs = [spec.name for spec in self.outputs]
        if len(tensors) != len(names):
            raise ArtifactError(
                f"function '{self.name}': called with {len(tensors)} inputs, it has {len(names)}"
            )
        return tuple(call_function(self._function, self._policy, names, outputs, tensors))


def _spec(name: str, declared: TensorType) -> TensorSpec:
    if None in declared.shape:
        raise ArtifactError(f"'{name}' has a flexible shape; only fixed shapes can be executed")
    return TensorSpec(name, tuple(size or 0 for size in declared.shape), declared.dtype.numpy)
