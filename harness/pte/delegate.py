"""A program's Core ML delegates, run by our ML Program executor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.artifact import ArtifactError, Delegate
from harness.mil import Function, Policy, State, load_function
from harness.pte.program import DelegateRunner


def mil_delegate(delegate: Delegate, policy: Policy, *, stateful: bool = False) -> DelegateRunner:
    """Return a delegate as a function of tensors, both in the order of `metadata.json`.

    One that keeps states is for callers that say `stateful`: they start at zero, and go on from
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
    return lambda tensors: call_function(function, policy, inputs, outputs, tensors, state)


def call_function(
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
