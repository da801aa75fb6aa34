"""Gives ExecuTorch's native runtime a Core ML backend: our executor.

The runtime itself reads and verifies every program, and executes every method without a Core ML
delegate. This module loads and executes the other methods. It checks their inputs as strictly as
the runtime does: a refused input raises the runtime's error number with our sentence.
Sources: ExecuTorch's `extension/pybindings/pybindings.cpp`, versions 1.4 and 1.5, and
`Method::set_input` in its `runtime/executor/method.cpp`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

from harness.artifact import Artifact
from harness.artifact.delegate import BACKEND
from harness.artifact.files import map_file
from harness.artifact.pte import TensorValue, Value
from harness.artifact.pte_reader import parse_pte
from harness.child import POLICY_VARIABLE
from harness.errors import ArtifactError, HarnessError
from harness.mil import get_policy
from harness.pte.interpreter import Interpreter
from harness.pte.program import mil_delegate
from harness.shim.values import report_not_finite

# Of ExecuTorch's `runtime/core/error.h`.
_NOT_SUPPORTED = 0x10
_INVALID_ARGUMENT = 0x12
_INVALID_PROGRAM = 0x23
_DELEGATE_FAILED = 0x32  # DelegateInvalidHandle, which the Core ML backend returns

_SCALAR_TOLERANCE = {"rel_tol": 1e-5, "abs_tol": 1e-4}  # of a float that was an input at export


class MethodProxy:
    """A method that our executor runs.

    The environment variable HARNESS_POLICY selects the precision of FLOAT16; by default it is
    rounded after every operation. The method owns its Core ML states and the program's buffers.
    """

    def __init__(self, artifact: Artifact, name: str, meta: Any) -> None:
        assert artifact.pte is not None
        self._name = name
        self._where = f"{artifact.path}, method '{name}'"
        self._meta = meta
        self._plan = artifact.pte.methods[name]
        self._inputs: list[Any] | None = None
        self._outputs: list[Any] = []
        self._reported: set[str] = set()
        with _failing(f"Failed to load method {name}, error: 0x:{_INVALID_PROGRAM:x}"):
            policy = get_policy(os.environ.get(POLICY_VARIABLE, "strict"))
            factory = partial(mil_delegate, policy=policy, stateful=True)
            names = [str(position) for position in range(len(self._plan.outputs))]
            self._interpreter = Interpreter(artifact, name, factory, names)

    def method_meta(self) -> Any:
        """Return the runtime's description of the method: `MethodMeta`."""
        return self._meta

    def set_inputs(self, inputs: Sequence[Any]) -> None:
        """Set the inputs of the next execution; RuntimeError for one that the program refuses."""
        values = [self._plan.values[index] for index in self._plan.inputs]
        if len(inputs) != len(values):
            raise self._refusal(
                _INVALID_ARGUMENT, f"{len(inputs)} inputs were given, it has {len(values)}"
            )
        for position, (value, given) in enumerate(zip(values, inputs, strict=True)):
            self._check(position, value, given)
        self._inputs = [one.detach() if torch.is_tensor(one) else one for one in inputs]

    def execute(self) -> None:
        """Execute once, on the inputs that were set last."""
        if self._inputs is None:
            if self._plan.inputs:
                problem = f"method->execute() failed with error 0x{_INVALID_ARGUMENT:x}"
                raise RuntimeError(f"{problem}: method '{self._name}' was given no inputs")
            self._inputs = []
        with _failing(f"method->execute() failed with error 0x{_DELEGATE_FAILED:x}"):
            self._outputs = self._interpreter.run(self._inputs)
        named = {str(position): value for position, value in enumerate(self._outputs)}
        report_not_finite(self._where, named, self._reported)

    def get_outputs(self, clone_outputs: bool = True) -> list[Any]:
        """Return copies of the last execution's outputs, with tensors as declared."""
        declared = [self._plan.values[index] for index in self._plan.outputs]
        return [
            _declared_copy(value, result)
            for value, result in zip(declared, self._outputs, strict=True)
        ]

    def call(self, inputs: Any = (), clone_outputs: bool = True) -> list[Any]:
        """Execute on a sequence of inputs, or on the only input, a tensor; return a list."""
        self.set_inputs((inputs,) if torch.is_tensor(inputs) else inputs)
        self.execute()
        return self.get_outputs(clone_outputs)

    __call__ = call

    def _check(self, position: int, value: Value, given: Any) -> None:
        """Raise RuntimeError unless the program takes this input at this position."""
        if type(given) is torch.Tensor:
            self._check_layout(position, given)
        elif not isinstance(given, bool | int | float | None):
            raise RuntimeError(
                f"Unsupported python type {type(given)}: input {position} of method "
                f"'{self._name}'; give tensors, numbers or None, not nested"
            )
        if isinstance(value, TensorValue) and type(given) is torch.Tensor:
            self._check_tensor(position, value, given)
        elif not _is_same_constant(value, given):
            want = f"a {value.dtype} tensor" if isinstance(value, TensorValue) else repr(value)
            raise self._refusal(
                _INVALID_ARGUMENT,
                f"input {position} is {_described(given)}; the program was exported with {want}",
            )

    def _check_layout(self, position: int, tensor: torch.Tensor) -> None:
        channels_last = tensor.dim() == 4 and tensor.is_contiguous(
            memory_format=torch.channels_last
        )
        if not (tensor.is_contiguous() or channels_last):
            raise RuntimeError(
                f"Input {position} for method {self._name} should be contiguous or channels-last: "
                "call .contiguous()"
            )

    def _check_tensor(self, position: int, value: TensorValue, tensor: torch.Tensor) -> None:
        if tensor.dtype is not getattr(torch, value.dtype):
            have = str(tensor.dtype).removeprefix("torch.")
            raise self._refusal(
                _INVALID_ARGUMENT, f"input {position} is {have}, not the declared {value.dtype}"
            )
        if not value.allows(tensor.shape):
            smaller = " or a smaller one" if value.resizable else ""
            raise self._refusal(
                _NOT_SUPPORTED,
                f"input {position} has shape {list(tensor.shape)}, not the declared "
                f"{list(value.shape)}{smaller}",
            )

    def _refusal(self, number: int, problem: str) -> RuntimeError:
        call = f"method->set_inputs() for method '{self._name}' failed"
        return RuntimeError(f"{call} with error 0x{number:x}: {problem}")


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn a HarnessError into a RuntimeError that begins with `what`."""
    try:
        yield
    except HarnessError as error:
        raise RuntimeError(f"{what}: {error}") from error


def _is_same_constant(value: Value, given: Any) -> bool:
    """Return whether a number or None equals the one at export."""
    if isinstance(value, float) and isinstance(given, float):
        same = math.isnan(value) and math.isnan(given)
        return same or math.isclose(given, value, **_SCALAR_TOLERANCE)
    return type(value) is type(given) and not torch.is_tensor(given) and bool(value == given)


def _described(given: Any) -> str:
    return f"a {given.dtype} tensor" if torch.is_tensor(given) else repr(given)


def _declared_copy(value: Value, result: Any) -> Any:
    """Return a copy in the declared dtype, the dtype of the runtime's memory."""
    if not isinstance(value, TensorValue):
        return result
    return result.to(getattr(torch, value.dtype), copy=True)


def patch(native: Any) -> None:
    """Put the backend into the native module before other modules copy its functions."""
    names, is_available = native._get_registered_backend_names, native._is_available
    native._get_registered_backend_names = lambda: [*names(), BACKEND]
    native._is_available = lambda backend_name: (
        backend_name == BACKEND or is_available(backend_name)
    )
    for name, proxy in _LOADERS.items():
        setattr(native, name, _loading(getattr(native, name), proxy))


class ProgramProxy:
    """A program for `executorch.runtime`: methods with Core ML delegates run here."""

    def __init__(self, native: Any, artifact: Artifact) -> None:
        self._native = native
        self._artifact = artifact

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)  # what needs no delegate

    def load_method(self, method_name: str) -> Any:
        """Load a method; RuntimeError with the reason if its delegates cannot be executed."""
        if not _has_core_ml(self._artifact, method_name):
            return self._native.load_method(method_name)
        return MethodProxy(self._artifact, method_name, self._native.method_meta(method_name))


class ModuleProxy:
    """A program for `_load_for_executorch`: a method is loaded when it is first run."""

    def __init__(self, native: Any, artifact: Artifact) -> None:
        self._native = native
        self._artifact = artifact
        self._loaded: dict[str, MethodProxy] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)  # what needs no delegate

    def run_method(self, method_name: str, inputs: Any = (), clone_outputs: bool = True) -> Any:
        """Run a method on its inputs; return its outputs as a list."""
        if not _has_core_ml(self._artifact, method_name):
            return self._native.run_method(method_name, inputs, clone_outputs)
        return self._method(method_name).call(inputs, clone_outputs)

    def forward(self, inputs: Any = (), clone_outputs: bool = True) -> Any:
        """Run `forward` on a sequence of inputs, or on the only input, a tensor."""
        return self.run_method("forward", inputs, clone_outputs)

    __call__ = forward

    def plan_execute(self, method_name: str, clone_outputs: bool = True) -> Any:
        """Run a method on the inputs that were set last."""
        if not _has_core_ml(self._artifact, method_name):
            return self._native.plan_execute(method_name, clone_outputs)
        method = self._method(method_name)
        method.execute()
        return method.get_outputs(clone_outputs)

    def _method(self, name: str) -> MethodProxy:
        if name not in self._loaded:
            meta = self._native.method_meta(name)
            self._loaded[name] = MethodProxy(self._artifact, name, meta)
        return self._loaded[name]


_LOADERS: dict[str, type[ProgramProxy] | type[ModuleProxy]] = {
    "_load_program": ProgramProxy,
    "_load_program_from_buffer": ProgramProxy,
    "_load_for_executorch": ModuleProxy,
    "_load_for_executorch_from_buffer": ModuleProxy,
}
"""Function of the native module -> the proxy for the programs that it returns."""


def _loading(load: Callable[..., Any], proxy: Callable[[Any, Artifact], Any]) -> Callable[..., Any]:
    """Return a loader that returns a proxy for each program with Core ML delegates."""

    @wraps(load)
    def loaded(*arguments: Any, **options: Any) -> Any:
        native = load(*arguments, **options)
        artifact = _read(next(iter((*arguments, *options.values()))))  # a path, or bytes
        return native if artifact is None else proxy(native, artifact)

    return loaded


def _read(source: str | bytes) -> Artifact | None:
    """Return a program if it has Core ML delegates, else None.

    Raises RuntimeError for one that ExecuTorch can read and this project cannot.
    """
    path = Path(source) if isinstance(source, str) else Path("the program in memory")
    data = map_file(path) if isinstance(source, str) else memoryview(source)
    try:
        artifact = Artifact(path, parse_pte(data, str(path)), None)
    except ArtifactError as error:
        if BACKEND.encode() not in bytes(data):
            return None
        raise RuntimeError(f"Failed to load program: {error}") from error
    return artifact if any(_has_core_ml(artifact, name) for name in artifact.methods) else None


def _has_core_ml(artifact: Artifact, method: str) -> bool:
    assert artifact.pte is not None
    plan = artifact.pte.methods.get(method)
    return plan is not None and any(data.backend == BACKEND for data in plan.delegates)
