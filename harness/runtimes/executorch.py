"""`executorch`: ExecuTorch's own runtime, with its Core ML backend; on a Mac.

`executorch@1.5.1` and `executorch@PATH` are those of another ExecuTorch, and `executorch@installed`
that of this Python. Where there is no Core ML, our executor is their Core ML backend, so that what
ExecuTorch itself does is executed anywhere.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from harness.artifact import Artifact
from harness.artifact.delegate import BACKEND
from harness.artifact.pte import PteMethod, TensorValue
from harness.errors import ArtifactError, HarnessError
from harness.pte import TensorSpec
from harness.runtimes.base import Method


class ExecuTorchRuntime:
    """Executes a .pte as an application would, through `executorch.runtime`."""

    def __init__(self, place: str = "") -> None:
        """`place` is that of `executorch@PLACE`, in whose Python this runs."""
        self.name = f"executorch@{place}" if place else "executorch"

    def unavailable(self) -> str | None:
        """Return the reason: ExecuTorch's runtime does not import, or was built without Core ML."""
        return _why_no_core_ml()

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method from the file: two loaded methods share no buffer and no state.

        Raises HarnessError with ExecuTorch's own reason.
        """
        if artifact.pte is None or method not in artifact.methods:
            names = ", ".join(artifact.methods) if artifact.pte else "none: it is not a .pte"
            raise ArtifactError(f"{artifact.path}: no method '{method}'; its methods: {names}")
        plan = artifact.pte.methods[method]
        return ExecuTorchMethod(artifact.path, plan)


class ExecuTorchMethod:
    """A method of a .pte, loaded by ExecuTorch's runtime."""

    def __init__(self, path: Path, plan: PteMethod) -> None:
        from executorch.runtime import Runtime

        self.name = plan.name
        self._where = f"{path}, method '{plan.name}'"
        self.inputs = tuple(self._spec(plan, "input", i) for i in range(len(plan.inputs)))
        self.outputs = tuple(self._spec(plan, "output", i) for i in range(len(plan.outputs)))
        self._dtypes = [getattr(torch, spec.dtype) for spec in self.inputs]
        try:
            # The program owns what the method points into, so it must live as long.
            self._program = Runtime.get().load_program(path)
            self._method: Any = self._program.load_method(plan.name)
        except RuntimeError as error:
            raise HarnessError(f"{self._where}: ExecuTorch cannot load it: {error}") from error

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once; see `harness.runtimes.base.Method`.

        Raises HarnessError for inputs of other shapes than declared, and when ExecuTorch fails.
        """
        if [tuple(tensor.shape) for tensor in tensors] != [spec.shape for spec in self.inputs]:
            raise HarnessError(
                f"{self._where}: called with shapes {[list(t.shape) for t in tensors]}, declared "
                f"are {[list(spec.shape) for spec in self.inputs]}"
            )
        inputs = [
            tensor.to(dtype).contiguous()
            for tensor, dtype in zip(tensors, self._dtypes, strict=True)
        ]
        try:
            return tuple(self._method.execute(inputs))
        except RuntimeError as error:
            raise HarnessError(f"{self._where}: ExecuTorch cannot execute it: {error}") from error

    def _spec(self, plan: PteMethod, side: str, position: int) -> TensorSpec:
        indices = plan.inputs if side == "input" else plan.outputs
        value = plan.values[indices[position]]
        if not isinstance(value, TensorValue):
            raise ArtifactError(f"{self._where}: {side} {position} is not a tensor")
        return TensorSpec(f"{side}_{position}", value.shape, value.dtype)


@functools.cache
def _why_no_core_ml() -> str | None:
    try:
        from executorch.runtime import Runtime

        registry = Runtime.get().backend_registry
    except ImportError as error:
        return f"ExecuTorch's runtime cannot be imported ({error})"
    if registry.is_available(BACKEND):
        return None
    names = ", ".join(sorted(registry.registered_backend_names)) or "none"
    return f"this build of ExecuTorch has no {BACKEND} (it has: {names})"
