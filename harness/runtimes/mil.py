"""`mil:strict`, `mil:widen` and `mil:double`: our ML Program executor, on any machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.artifact import Artifact, ArtifactError, Delegate
from harness.mil import Function, Policy, State, TensorType, get_policy, load_function
from harness.runtimes.base import Method, TensorSpec
from harness.runtimes.program import DelegateRunner, ProgramMethod


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


def mil_delegate(delegate: Delegate, policy: Policy, *, stateful: bool = False) -> DelegateRunner:
    """Return a delegate as a function of tensors, both in the order of `metadata.json`.

    One that keeps states is for callers that say ``stateful``: they start at zero, and go on from
    call to call, as with ExecuTorch's Core ML backend. Raises ArtifactError for it otherwise, for
    names that are not the function's own, and as `load_function` does.
    """
    name = delegate.program_function
    function = load_function(delegate.bundle.package, name, policy, stateful=stateful)
    state = function.new_state() if function.states else None
    inputs, outputs = delegate.names.input_names, delegate.names.output_names
    for kind, named, own in (
        ("inputs", inputs, function.inputs),
        ("outputs", outputs, function.outputs),
    ):
        if set(named) != set(own):
            raise ArtifactError(
                f"{delegate.where}: the {kind} in metadata.json and those of function '{name}' "
                f"differ in {', '.join(sorted(set(named) ^ set(own)))}"
            )
    return lambda tensors: _call(function, policy, inputs, outputs, tensors, state)


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
        return tuple(_call(self._function, self._policy, names, outputs, tensors))


def _call(
    function: Function,
    policy: Policy,
    inputs: Sequence[str],
    outputs: Sequence[str],
    tensors: Sequence[torch.Tensor],
    state: State | None = None,
) -> list[torch.Tensor]:
    """Call by position. A strict result leaves in its declared dtype, which holds it exactly.

    Core ML has no tensor of rank 0: a program that takes one has an input of shape (1,).
    """
    given = dict(zip(inputs, tensors, strict=True))
    for name, tensor in given.items():
        if tensor.shape == () and name in function.inputs and function.inputs[name].shape == (1,):
            given[name] = tensor.reshape(1)
    results = function(given, state)
    if not policy.rounds_half:
        return [results[name] for name in outputs]
    return [
        results[name].to(getattr(torch, function.outputs[name].dtype.numpy)) for name in outputs
    ]


def _spec(name: str, declared: TensorType) -> TensorSpec:
    if None in declared.shape:
        raise ArtifactError(f"'{name}' has a flexible shape; only fixed shapes can be executed")
    return TensorSpec(name, tuple(size or 0 for size in declared.shape), declared.dtype.numpy)
