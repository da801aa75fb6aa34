"""`mil:strict`, `mil:widen` and `mil:double`: our ML Program executor, on any machine."""

from __future__ import annotations

import torch

from harness.artifact import Artifact, Delegate
from harness.errors import ArtifactError
from harness.mil import Function, Policy, TensorType, get_policy, load_function
from harness.mil.types import DictionaryType
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
        """Load a method, or a function of an .mlpackage; its states start at zero.

        Raises HarnessError, naming function and operation, when the program cannot be executed.
        """
        if artifact.package is not None:
            function = load_function(artifact.package, method, self._policy, stateful=True)
            return _PackageMethod(method, function, self._policy)
        return ProgramMethod(artifact, method, self._delegate)

    def _delegate(self, delegate: Delegate) -> DelegateRunner:
        return mil_delegate(delegate, self._policy, stateful=True)


class _PackageMethod:
    """A function of an .mlpackage, called in the order of its declared inputs.

    A flexible size in a shape is -1. A classifier gives the probabilities of its labels, in their
    order, as a vector; it does not give the most probable label, which follows from them.
    """

    def __init__(self, name: str, function: Function, policy: Policy) -> None:
        self.name = name
        self._function = function
        self._policy = policy
        self._state = function.new_state() if function.states else None
        self.inputs = tuple(_spec(n, t) for n, t in function.inputs.items())
        outputs = function.outputs.items()
        labels = {kind.key.dtype for _, kind in outputs if isinstance(kind, DictionaryType)}
        self.outputs = tuple(
            TensorSpec(name, (-1,), "float32")
            if isinstance(kind, DictionaryType)
            else _spec(name, kind)
            for name, kind in outputs
            if isinstance(kind, DictionaryType) or kind.shape or kind.dtype not in labels
        )

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = [spec.name for spec in self.inputs]
        outputs = [spec.name for spec in self.outputs]
        if len(tensors) != len(names):
            raise ArtifactError(
                f"function '{self.name}': called with {len(tensors)} inputs, it has {len(names)}"
            )
        results = call_function(self._function, self._policy, names, outputs, tensors, self._state)
        return tuple(results)


def _spec(name: str, declared: TensorType) -> TensorSpec:
    shape = tuple(-1 if size is None else size for size in declared.shape)
    return TensorSpec(name, shape, declared.dtype.numpy)
