"""A method of a .pte as a `Method`; our ML Program executor runs its Core ML delegates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from harness.artifact import Artifact, Delegate
from harness.artifact.package import core_ml_shape
from harness.artifact.pte import TensorValue
from harness.errors import ArtifactError, HarnessError
from harness.mil import Function, Policy, State, load_function
from harness.pte import method_signature
from harness.pte.interpreter import DelegateFactory, DelegateRunner, Interpreter


class ProgramMethod:
    """A method of a .pte; `factory` makes the function that runs a Core ML delegate."""

    def __init__(self, artifact: Artifact, method: str, factory: DelegateFactory) -> None:
        self.name = method
        self.inputs, self.outputs = method_signature(artifact, method)
        assert artifact.pte is not None, "only a program has a signature"
        plan = artifact.pte.methods[method]
        self._declared = [plan.values[index] for index in plan.inputs]
        self._where = f"{artifact.path}, method '{method}'"
        names = [spec.name for spec in self.outputs]
        self._interpreter = Interpreter(artifact, method, factory, names)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once; see `harness.runtimes.base.Method`. Results may share memory with inputs.

        Raises HarnessError that names the input, delegate or kernel at fault.
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
                    f"not the declared {list(spec.shape)}"
                )
            is_float = spec.dtype.startswith("float")
            if is_float != tensor.is_floating_point():
                raise HarnessError(
                    f"{self._where}: input '{spec.name}' is {tensor.dtype}, not {spec.dtype}"
                )
            entered.append(tensor if is_float else tensor.to(getattr(torch, spec.dtype)))
        return entered


def mil_delegate(delegate: Delegate, policy: Policy, *, stateful: bool = False) -> DelegateRunner:
    """Return a delegate as a function; its inputs and results have the order of `metadata.json`.

    A delegate with states needs `stateful`: the states start at zero and keep their values from
    call to call, as in ExecuTorch's Core ML backend. Raises ArtifactError for states without
    `stateful`, for names that the function does not have, and the errors of `load_function`.
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
    """Call a function by position; a strict result has its declared dtype.

    The probabilities of a classifier's labels are a vector, in the order of the labels.
    """
    given = dict(zip(inputs, tensors, strict=True))
    results = function(in_core_ml_shapes(function, given), state)
    found = []
    for name in outputs:
        value, declared = results[name], function.outputs[name]
        if isinstance(value, dict):
            found.append(torch.tensor(list(value.values())))
        elif policy.rounds_half:
            found.append(value.to(getattr(torch, declared.dtype.numpy)))
        else:
            found.append(value)
    return found


def in_core_ml_shapes(
    function: Function, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return tensors by name; one of rank 0 gets the shape in which the function takes it."""
    shaped = dict(tensors)
    for name in [name for name, tensor in tensors.items() if not tensor.dim()]:
        shape = core_ml_shape(())
        declared = function.inputs.get(name)
        if declared is not None and declared.shape == shape:
            shaped[name] = tensors[name].reshape(shape)
    return shaped
