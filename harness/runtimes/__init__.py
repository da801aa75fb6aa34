"""Runtimes by name, ``kind[:option]``; a runtime's module is imported when it is asked for."""

from __future__ import annotations

import importlib

from harness.errors import HarnessError
from harness.runtimes.base import Method, Runtime, TensorSpec

__all__ = ["RUNTIMES", "Method", "Runtime", "TensorSpec", "default_runtime", "get_runtime"]

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
_CRASH_PRONE = ("coreml", "executorch")  # native code that has crashed: in a child process
_DEFAULT_OPTIONS = {"mil": "widen", "eager": "fp32", "coreml": "cpu_and_ne"}

RUNTIMES = tuple(
    f"{kind}:{option}" if option else kind
    for kind, (_, _, options) in _KINDS.items()
    for option in options or ("",)
)
"""The full names of all runtimes, available here or not."""


def get_runtime(name: str) -> Runtime:
    """Return a runtime; a kind alone means its usual option ("mil" is "mil:widen").

    Raises HarnessError with the names there are.
    """
    kind, _, option = name.partition(":")
    option = option or _DEFAULT_OPTIONS.get(kind, "")
    full_name = f"{kind}:{option}" if option else kind
    if full_name not in RUNTIMES:
        raise HarnessError(f"no runtime '{name}'; choose from {', '.join(RUNTIMES)}")
    module, class_name, _ = _KINDS[kind]
    runtime_class = getattr(importlib.import_module(module), class_name)
    arguments = (option,) if option else ()
    if kind in _CRASH_PRONE:
        from harness.runtimes.isolated import IsolatedRuntime

        return IsolatedRuntime(runtime_class, *arguments)
    runtime: Runtime = runtime_class(*arguments)
    return runtime


def default_runtime() -> str:
    """Return the name of the runtime for this machine: Core ML on a Mac, our executor elsewhere.

    A Mac without a Neural Engine, as hosted ones are, uses Core ML on the CPU.
    """
    for name in ("coreml:cpu_and_ne", "coreml:cpu_only"):
        if get_runtime(name).unavailable() is None:
            return name
    return "mil:widen"
