"""Runtimes by name, `kind[:option]`; a runtime's module is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.runtimes.base import Method, Runtime, TensorSpec

if TYPE_CHECKING:
    from harness.runtimes.isolated import IsolatedRuntime

__all__ = [
    "RUNTIMES",
    "Method",
    "Runtime",
    "TensorSpec",
    "default_runtime",
    "get_runtime",
    "isolated_runtime",
]

_KINDS = {
    "mil": ("harness.runtimes.mil", "MilRuntime", ("strict", "widen", "double")),
    "eager": ("harness.runtimes.eager", "EagerRuntime", ("fp16", "fp32", "fp64")),
    "coreml": (
        "harness.runtimes.coreml",
        "CoreMLRuntime",
        ("cpu_only", "cpu_and_gpu", "cpu_and_ne"),
    ),
    "executorch": ("harness.runtimes.executorch", "ExecuTorchRuntime", ()),
}
# Native code that has crashed runs in a child process. True where this process itself asks whether
# it is available; executorch answers after ten seconds of imports, which are the child's.
_CRASH_PRONE = {"coreml": True, "executorch": False}
_DEFAULT_OPTIONS = {"mil": "widen", "eager": "fp32", "coreml": "cpu_and_ne"}

RUNTIMES = tuple(
    f"{kind}:{option}" if option else kind
    for kind, (_, _, options) in _KINDS.items()
    for option in options or ("",)
)
"""The full names of all runtimes, available here or not."""


def get_runtime(name: str) -> Runtime:
    """Return a runtime; a kind alone means its usual option ("mil" is "mil:widen").

    Crash-prone ones come isolated. Raises HarnessError with the names there are.
    """
    kind, _, _ = name.partition(":")
    if kind in _CRASH_PRONE:
        return isolated_runtime(name)
    runtime_class, arguments = _find(name)
    runtime: Runtime = runtime_class(*arguments)
    return runtime


def isolated_runtime(name: str) -> IsolatedRuntime:
    """Return any runtime in child processes: where its memory is measured, say."""
    from harness.runtimes.isolated import IsolatedRuntime

    runtime_class, arguments = _find(name)
    ask_here = _CRASH_PRONE.get(name.partition(":")[0], True)
    return IsolatedRuntime(runtime_class, *arguments, ask_here=ask_here)


def _find(name: str) -> tuple[Callable[..., Runtime], tuple[str, ...]]:
    """The class of a runtime, and the arguments that make it."""
    kind, _, option = name.partition(":")
    option = option or _DEFAULT_OPTIONS.get(kind, "")
    full_name = f"{kind}:{option}" if option else kind
    if full_name not in RUNTIMES:
        raise HarnessError(f"no runtime '{name}'; choose from {', '.join(RUNTIMES)}")
    module, class_name, _ = _KINDS[kind]
    runtime_class = getattr(importlib.import_module(module), class_name)
    return runtime_class, (option,) if option else ()


def default_runtime() -> str:
    """Return the name of the runtime for this machine: Core ML on a Mac, our executor elsewhere.

    A Mac without a Neural Engine, as hosted ones are, uses Core ML on the CPU.
    """
    for name in ("coreml:cpu_and_ne", "coreml:cpu_only"):
        if get_runtime(name).unavailable() is None:
            return name
    return "mil:widen"
