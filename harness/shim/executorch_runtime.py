"""Gives ExecuTorch's native runtime a Core ML backend: our executor.

The runtime itself reads and verifies every program, and executes all methods without a Core ML
delegate. Only loading a method that has one ends here; what the runtime tells of it is its own.
Source of the interface: ExecuTorch's `extension/pybindings/pybindings.cpp`, version 1.4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from harness.artifact import Artifact, ArtifactError
from harness.artifact.delegate import BACKEND
from harness.artifact.mapped import map_file
from harness.artifact.pte_reader import parse_pte
from harness.shim.executorch_method import MethodProxy


def patch(native: Any) -> None:
    """Put the backend into the native module, before others have copied its functions."""
    names, is_available = native._get_registered_backend_names, native._is_available
    native._get_registered_backend_names = lambda: [*names(), BACKEND]
    native._is_available = lambda backend_name: (
        backend_name == BACKEND or is_available(backend_name)
    )
    for name, proxy in _LOADERS.items():
        setattr(native, name, _loading(getattr(native, name), proxy))


class ProgramProxy:
    """A program as `executorch.runtime` uses it: methods with Core ML delegates run here."""

    def __init__(self, native: Any, artifact: Artifact) -> None:
        self._native = native
        self._artifact = artifact

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)  # what needs no delegate

    def load_method(self, method_name: str) -> Any:
        """Load a method; RuntimeError with the reason when Core ML's part cannot be executed."""
        if not _has_core_ml(self._artifact, method_name):
            return self._native.load_method(method_name)
        return MethodProxy(self._artifact, method_name, self._native.method_meta(method_name))


class ModuleProxy:
    """A program as `_load_for_executorch` gives it: methods are loaded when they are first run."""

    def __init__(self, native: Any, artifact: Artifact) -> None:
        self._native = native
        self._artifact = artifact
        self._loaded: dict[str, MethodProxy] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)  # what needs no delegate

    def run_method(self, method_name: str, inputs: Any = (), clone_outputs: bool = True) -> Any:
        """Run a method on its inputs, and return its outputs as a list."""
        if not _has_core_ml(self._artifact, method_name):
            return self._native.run_method(method_name, inputs, clone_outputs)
        return self._method(method_name).call(inputs, clone_outputs)

    def forward(self, inputs: Any = (), clone_outputs: bool = True) -> Any:
        """Run `forward`; a tensor alone is its only input."""
        return self.run_method("forward", inputs, clone_outputs)

    __call__ = forward

    def plan_execute(self, method_name: str, clone_outputs: bool = True) -> Any:
        """Run a method on the inputs that it was given last."""
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
"""Function of the native module -> what stands in for what it returns."""


def _loading(load: Callable[..., Any], proxy: Callable[[Any, Artifact], Any]) -> Callable[..., Any]:
    """Return a loader whose programs are stood in for where they have Core ML delegates."""

    @wraps(load)
    def loaded(*arguments: Any, **options: Any) -> Any:
        native = load(*arguments, **options)
        artifact = _read(next(iter((*arguments, *options.values()))))  # a path, or bytes
        return native if artifact is None else proxy(native, artifact)

    return loaded


def _read(source: str | bytes) -> Artifact | None:
    """Return a program that has Core ML delegates, None for any other.

    Raises RuntimeError for one that ExecuTorch reads and this project does not.
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
