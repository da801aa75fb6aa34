"""Runs another runtime in a child process, so that its crash or hang is an outcome, not our end.

One child per artifact, for all its methods; it is started when it is first needed, and again after
it has died. It lives as long as the artifact or one of the methods.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from harness.artifact import Artifact
from harness.pte import TensorSpec
from harness.runtimes.base import Method, Runtime
from harness.runtimes.child_process import Answer, ChildProcess, Served


@dataclass(frozen=True)
class Limits:
    """Seconds that a child has for a request; the start of the child counts with the first."""

    load: float = 900.0  # compiling a large model for the Neural Engine takes minutes
    call: float = 120.0
    other: float = 300.0


class IsolatedRuntime:
    """The runtime `make(*arguments)`, in child processes; its class must be importable there.

    With `ask_here`, this process asks the runtime whether it is available: right where that is
    cheap and safe.
    """

    def __init__(
        self,
        make: Callable[..., Runtime],
        *arguments: str,
        limits: Limits | None = None,
        ask_here: bool = True,
    ) -> None:
        self._make = make
        self._arguments = arguments
        self._limits = limits or Limits()
        self._here = make(*arguments)
        self._ask_here = ask_here
        self.name = self._here.name
        self._children: WeakKeyDictionary[Artifact, _Child] = WeakKeyDictionary()

    def unavailable(self) -> str | None:
        """Say why the runtime cannot be used here; a child is asked once per process.

        Raises CrashError when the question is too much for the runtime: that is no absence.
        """
        if self._ask_here:
            return self._here.unavailable()
        return _why_unavailable(self._served(None), self._limits)

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method in the artifact's child.

        Raises what the runtime raises, CrashError when the child dies, CallTimeoutError when it
        does not answer.
        """
        return _RemoteMethod(self._child(artifact), method)

    def memory(self, artifact: Artifact) -> tuple[int, int]:
        """Return the peak memory of the artifact's child in bytes: before it loaded, and by now."""
        before, now = self._child(artifact).ask(self._limits.other, "measure").value
        return int(before), int(now)

    def _child(self, artifact: Artifact) -> _Child:
        if artifact not in self._children:
            self._children[artifact] = _Child(self._served(artifact), self._limits)
        return self._children[artifact]

    def _served(self, artifact: Artifact | None) -> Served:
        path = artifact.path if artifact else None
        module, name = self._make.__module__, self._make.__qualname__
        what = f"{path} on {self.name}" if path else f"runtime {self.name}"
        return Served(module, name, self._arguments, path, what)


@functools.cache
def _why_unavailable(served: Served, limits: Limits) -> str | None:
    child = ChildProcess(served)
    try:
        reason: str | None = child.ask(limits.other, "unavailable").value
        return reason
    finally:
        child.end()


class _RemoteMethod:
    def __init__(self, child: _Child, name: str) -> None:
        self.name = name
        self._child = child
        self.inputs, self.outputs = child.load(name)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._child.call(self.name, tensors)


class _Child:
    """An artifact's process, and the next one after it has died."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self._served = served
        self._limits = limits
        self._process: ChildProcess | None = None
        self._loaded: set[str] = set()
        self._turn = threading.Lock()

    def load(self, method: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Load a method; return its inputs and outputs."""
        inputs, outputs = self.ask(self._limits.load, "load", method).value
        self._loaded.add(method)
        return _specs(inputs), _specs(outputs)

    def call(self, method: str, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Call a method; after a crash it is loaded again first."""
        if method not in self._loaded:
            self.load(method)
        return self.ask(self._limits.call, "call", method, tensors).tensors

    def ask(
        self, seconds: float, verb: str, method: str = "", tensors: Sequence[torch.Tensor] = ()
    ) -> Answer:
        """Ask the process, one request at a time, starting one when there is none."""
        start = time.perf_counter_ns()
        with self._turn:
            if self._process is None:
                self._process = ChildProcess(self._served)
            try:
                answer = self._process.ask(seconds, verb, method, tensors)
            finally:
                if not self._process.end.alive:
                    self._process = None
                    self._loaded.clear()
        _away.ns = away_ns() + time.perf_counter_ns() - start - answer.ns
        return answer


def _specs(rows: list[tuple[str, list[int], str]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in rows)


_away = threading.local()


def away_ns() -> int:
    """Return how long this thread has waited for children beyond what their runtimes took.

    That is starting them, importing, and moving tensors. Who times a call subtracts what this grew
    by, and has the runtime's own time.
    """
    total: int = getattr(_away, "ns", 0)
    return total
