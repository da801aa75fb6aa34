"""The smallest runtime interface there is: load a method of an artefact, call it with tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from harness.artifact import Artifact


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its shape and its dtype ("float16", "int32", "int64")."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Method(Protocol):
    """A loaded method, called with tensors in declared order."""

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
    """Something that executes artefacts, named ``kind[:option]``."""

    name: str

    def unavailable(self) -> str | None:
        """Why this runtime cannot be used here, or None when it can."""
        ...

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load one method of an artefact; raises HarnessError with a sentence."""
        ...
