"""Runs a method of a .pte, or a function, on our executor and keeps every operation's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from harness.artifact import Artifact, Delegate
from harness.errors import ArtifactError, HarnessError
from harness.mil import Function, Policy, load_function, observed
from harness.mil.block import Step
from harness.mil.storage import State
from harness.mil.types import TensorType
from harness.pte import TensorSpec
from harness.pte.interpreter import DelegateRunner
from harness.pte.program import ProgramMethod, in_core_ml_shapes
from harness.results import OperationError
from harness.runtimes.base import Method
from harness.text import did_you_mean


@dataclass(frozen=True)
class Place:
    """The place of an operation: its method, the number of its delegate, and its function.

    An .mlpackage has functions only: the delegate is missing, and the method is the function.
    """

    method: str
    delegate: int | None
    function: str

    def __str__(self) -> str:
        if self.delegate is None:
            return f"function '{self.function}'"
        return f"method '{self.method}', delegate {self.delegate}, function '{self.function}'"


@dataclass(frozen=True)
class Part:
    """The name of a method, of an ML Program function, or both; None means all."""

    method: str | None = None
    function: str | None = None

    def check(self, artifact: Artifact) -> None:
        """Raise HarnessError that lists the known names when the artifact has no such part."""
        functions = {d.program_function for row in artifact.delegates.values() for d in row}
        if artifact.package is not None:
            functions = set(artifact.package.functions)
        for what, name, known in (
            ("method", self.method, set(artifact.methods)),
            ("function", self.function, functions),
        ):
            if name is not None and name not in known:
                raise HarnessError(
                    f"{artifact.path}: no {what} '{name}'; {did_you_mean(name, known)}"
                    f"there are {', '.join(sorted(known))}"
                )

    def methods(self, artifact: Artifact) -> list[str]:
        """Return the methods, or functions of an .mlpackage, that belong to the part."""
        if artifact.package is not None:
            return [name for name in artifact.methods if self.has(Place(name, None, name))]
        return [
            name
            for name, row in artifact.delegates.items()
            if any(self.has(Place(name, d.index, d.program_function)) for d in row)
        ]

    def has_method(self, name: str) -> bool:
        """Return whether a method belongs to the part."""
        return self.method in (None, name)

    def has(self, place: Place) -> bool:
        """Return whether the operations at a place belong to the part."""
        return self.has_method(place.method) and self.function in (None, place.function)

    def __str__(self) -> str:
        named = {"method": self.method, "function": self.function}
        said = [f"{what} '{name}'" for what, name in named.items() if name is not None]
        return " and ".join(said) or "it"


@dataclass(frozen=True)
class Recording:
    """One execution of a function: its values by name, and its operations in order.

    `values` holds inputs and results in the dtypes of the function's policy, without constants. An
    operation in another one's block is not listed: it is part of the other one.
    """

    place: Place
    function: Function
    values: dict[str, Any]
    types: dict[str, Any]
    steps: list[Step]

    def read_names(self, step: Step) -> list[str | None]:
        """Return the name of each value that an operation reads, None for an absent input.

        Constants are included.
        """
        return [None if slot < 0 else self._names.get(slot, "a value") for slot in step.reads]

    def constant(self, slot: int) -> Any:
        """Return the value of a slot before the function runs; None if the function computes it."""
        return self.function.plan.slots[slot]

    def operands(self, step: Step) -> list[Any]:
        """Return the value of each input of an operation, None for an absent one."""
        names = self.read_names(step)
        return [
            None if name is None else self.values.get(name, self.constant(slot))
            for name, slot in zip(names, step.reads, strict=True)
        ]

    @property
    def _names(self) -> dict[int, str]:
        return {slot: name for name, slot in self.function.plan.names.items()}


@dataclass
class Recorder:
    """Loads methods and records their executions; `recordings` belongs to the last call."""

    policy: Policy
    recordings: list[Recording] = field(default_factory=list)

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method, or a function of an .mlpackage; its states are zeros, and go on from then.

        Raises the HarnessErrors of `MilRuntime.load`.
        """
        if artifact.package is not None:
            function = load_function(artifact.package, method, self.policy, stateful=True)
            return _RecordedFunction(function, Place(method, None, method), self.recordings)
        inner = ProgramMethod(artifact, method, lambda delegate: self._delegate(method, delegate))
        return _Recorded(inner, self.recordings)

    def _delegate(self, method: str, delegate: Delegate) -> DelegateRunner:
        name = delegate.program_function
        place = Place(method, delegate.index, name)
        function = load_function(delegate.bundle.package, name, self.policy, stateful=True)
        state = _new_state(function)
        inputs, outputs = delegate.names.input_names, delegate.names.output_names
        if wrong := set(outputs) - set(function.outputs):
            raise ArtifactError(
                f"{delegate.where}: metadata.json names output '{min(wrong)}', which function "
                f"'{name}' does not have"
            )

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            given = dict(zip(inputs, tensors, strict=True))
            recording, results = record(function, given, place, state)
            self.recordings.append(recording)
            return [results[name] for name in outputs]

        return run


class _Recorded:
    def __init__(self, inner: Method, recordings: list[Recording]) -> None:
        self.name, self.inputs, self.outputs = inner.name, inner.inputs, inner.outputs
        self._inner = inner
        self._recordings = recordings

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._recordings.clear()
        return self._inner(*tensors)


class _RecordedFunction:
    """A function that is called with its inputs in order; a flexible size in a shape is -1."""

    def __init__(self, function: Function, place: Place, recordings: list[Recording]) -> None:
        self.name = place.function
        self.inputs = _specs(function.inputs)
        self.outputs = _specs(
            {n: t for n, t in function.outputs.items() if isinstance(t, TensorType)}
        )
        self._function, self._state = function, _new_state(function)
        self._place = place
        self._recordings = recordings

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)}
        recording, results = record(self._function, given, self._place, self._state)
        self._recordings[:] = [recording]
        return tuple(results[spec.name] for spec in self.outputs)


def _new_state(function: Function) -> State | None:
    return function.new_state() if function.states else None


def _specs(declared: Mapping[str, TensorType]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tuple(-1 if size is None else size for size in t.shape), t.dtype.numpy)
        for name, t in declared.items()
    )


def record(
    function: Function, inputs: dict[str, torch.Tensor], place: Place, state: State | None = None
) -> tuple[Recording, dict[str, Any]]:
    """Call a function; return its recording and its results."""
    given = in_core_ml_shapes(function, inputs)
    own = {id(step) for step in function.plan.steps}
    ran: list[tuple[Step, tuple[torch.Tensor, ...]]] = []

    def observe(step: Step, results: tuple[torch.Tensor, ...]) -> None:
        if id(step) in own:
            ran.append((step, results))

    with observed(observe):
        outputs = function(given, state)
    declared: dict[str, Any] = {name: kind for name, (_, kind) in function.plan.inputs.items()}
    values: dict[str, Any] = {
        name: function.policy.enter(tensor, function.inputs[name].dtype)
        for name, tensor in given.items()
    }
    for step, results in ran:
        values |= zip(step.names, results, strict=True)
        declared |= zip(step.names, step.types, strict=True)
    steps = [step for step, _ in ran if step.names]  # one that writes a state gives nothing
    return Recording(place, function, values, declared, steps), outputs


class LargestErrors:
    """The error of each operation in the call in which it is largest, in the order of execution."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], OperationError] = {}

    def add(self, errors: Iterable[OperationError]) -> None:
        """Add the errors of a call."""
        for one in errors:
            known = self._found.get((one.place, one.result))
            if known is None or _size(one) > _size(known):
                self._found[one.place, one.result] = one  # which keeps its place in the order

    def operations(self, others: LargestErrors | None = None) -> tuple[OperationError, ...]:
        """Return the operations; one whose layer nobody knows has that of the same in `others`."""
        return tuple(
            one if one.layer or others is None else replace(one, layer=others.layer_of(*key))
            for key, one in self._found.items()
        )

    def layer_of(self, place: str, result: str) -> str:
        """Return the layer of the operation with this result at a place; "" if nobody knows it."""
        known = self._found.get((place, result))
        return "" if known is None else known.layer


def _size(one: OperationError) -> float:
    return -1.0 if one.error is None else one.error
