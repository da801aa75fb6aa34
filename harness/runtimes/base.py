"""The smallest runtime interface there is: load a method of an artifact, call it with tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.pte import TensorSpec

if TYPE_CHECKING:
    import torch

    from harness.artifact import Artifact


class Method(Protocol):
    """A loaded method, called with tensors in declared order.

    States and buffers start anew when it is loaded, and go on from call to call.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once.

        A floating-point input may come in any floating dtype: the method converts it. A
        floating-point output may be wider than declared (a runtime that carries FLOAT16 as fp32
        returns fp32); the caller keeps it as it is, so that caches lose nothing.
        """
        ...


class Runtime(Protocol):
    """Something that executes artifacts, named `kind[:option]`."""

    name: str

    def unavailable(self) -> str | None:
        """Why this runtime cannot be used here, or None when it can."""
        ...

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load one method of an artifact; raises HarnessError with a sentence."""
        ...
