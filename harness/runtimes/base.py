"""The interface of a runtime: it loads a method of an artifact; the method takes tensors."""

from __future__ import annotations

import platform
import threading
from typing import TYPE_CHECKING, Protocol

from harness.pte import TensorSpec
from harness.shim import is_installed

if TYPE_CHECKING:
    import torch

    from harness.artifact import Artifact


def why_no_core_ml() -> str | None:
    """Return why this system cannot have Core ML; None on macOS, and where it is stood in for."""
    if platform.system() == "Darwin" or is_installed():
        return None
    return f"Core ML is part of macOS, and this is {platform.system()}"


class Method(Protocol):
    """A loaded method, called with tensors in declared order.

    States and buffers are new when the method is loaded, and keep their values between calls.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once.

        The method converts a floating-point input of any floating dtype. A floating-point output
        may be wider than declared: a runtime that carries FLOAT16 as fp32 returns fp32. The caller
        keeps that dtype, so that caches lose no precision.
        """
        ...


class Runtime(Protocol):
    """Something that executes artifacts, named `kind[:option]`."""

    name: str

    def unavailable(self) -> str | None:
        """Return why this runtime cannot be used here, or None when it can."""
        ...

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load one method of an artifact; raises HarnessError when it cannot be loaded."""
        ...


_core_ml = threading.local()


def core_ml_ns() -> int:
    """Return the nanoseconds that Core ML loaded and predicted for this thread, by its own clock.

    A caller reads it before and after. It does not grow while Core ML does not tell its times.
    """
    total: int = getattr(_core_ml, "ns", 0)
    return total


def add_core_ml_ns(told: int | None) -> None:
    """Add a duration that Core ML told, here or in a child."""
    _core_ml.ns = core_ml_ns() + (told or 0)
