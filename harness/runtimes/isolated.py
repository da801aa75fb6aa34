"""Runs another runtime in a child process, so that its crash or hang does not end this process.

An artifact has one child for all its methods. It starts when it is first needed, and again after it
has died; it lives as long as the artifact or one of the methods. At its end it first unloads its
methods, because Core ML removes a compiled model when it unloads it.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch

from harness.artifact import Artifact
from harness.child import Child, python_path
from harness.errors import HarnessError, NotInstalledError
from harness.export.environments import placed
from harness.export.executorch import python_path_of
from harness.files import private_folder
from harness.pte import TensorSpec
from harness.runtimes._isolated_child import SharedTensors, anonymous_file
from harness.runtimes.base import Method, Runtime, add_core_ml_ns, why_no_core_ml
from harness.shim import SITE, is_installed

CHILD = "harness.runtimes._isolated_child"


@dataclass(frozen=True)
class Limits:
    """Seconds that a child has for a request; the start of the child counts with the first."""

    load: float = 900.0  # compiling a large model for the Neural Engine takes minutes
    call: float = 120.0
    other: float = 300.0
    end: float = 10.0


@dataclass(frozen=True)
class Setup:
    """What a child runs: a runtime's class with its arguments, and the artifact, if any.

    `place` is that of the ExecuTorch in whose Python it runs, "" for this Python.
    """

    module: str
    class_name: str
    arguments: tuple[str, ...]
    path: Path | None
    what: str  # for messages
    place: str


@dataclass(frozen=True)
class Answer:
    """What a child answered: a value, tensors, and the nanoseconds that the runtime took.

    `core_ml_ns` are those of them that Core ML told.
    """

    value: Any
    tensors: tuple[torch.Tensor, ...]
    ns: int
    core_ml_ns: int


class IsolatedRuntime:
    """The runtime `make(*arguments)`, in child processes, which must be able to import its class.

    With `ask_here`, this process asks the runtime whether it is available. That must be cheap and
    safe. With a `place`, the children run in the Python of `executorch@PLACE`; where Core ML is
    not, our executor is stood in for it. With `pte_only`, no child starts for another artifact.
    With `needs_core_ml` and no place, no child is asked on a system that cannot have Core ML.
    """

    def __init__(
        self,
        make: Callable[..., Runtime],
        *arguments: str,
        limits: Limits | None = None,
        ask_here: bool = True,
        place: str = "",
        pte_only: bool = False,
        needs_core_ml: bool = False,
    ) -> None:
        self._make = make
        self._arguments = arguments
        self._limits = limits or Limits()
        self._here = make(*arguments)
        self._ask_here = ask_here
        self._place = place
        self._needs_core_ml = needs_core_ml and not place
        self._pte_only = pte_only
        self.name = self._here.name
        self._children: WeakKeyDictionary[Artifact, _ArtifactChild] = WeakKeyDictionary()

    def unavailable(self) -> str | None:
        """Return why the runtime cannot be used here, or None; a child is asked once per process.

        Raises CrashError when the runtime crashes on the question: it is not absent then.
        """
        if self._ask_here:
            return self._here.unavailable()
        if self._needs_core_ml and (reason := why_no_core_ml()):
            return reason
        return _why_unavailable(self._setup(None), self._limits)

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method in the artifact's child.

        Raises what the runtime raises, CrashError when the child dies, CallTimeoutError when it
        does not answer, and NotInstalledError for an artifact that the runtime does not take.
        """
        if self._pte_only and artifact.kind != "pte":
            what = "an exported folder" if artifact.is_exported_folder else "an .mlpackage"
            raise NotInstalledError(f"{artifact.path} is {what}; {self.name} executes .pte files")
        return _RemoteMethod(self._child(artifact), method)

    def memory(self, artifact: Artifact) -> tuple[int, int]:
        """Return the peak memory of the artifact's child in bytes: before it loaded, and by now."""
        before, now = self._child(artifact).ask(self._limits.other, "measure").value
        return int(before), int(now)

    def profile(
        self, artifact: Artifact, method: str, tensors: Sequence[torch.Tensor]
    ) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """Return the JSON of the runtime's `profile`, and the first call's results.

        Raises as `load` does.
        """
        answer = self._child(artifact).ask(self._limits.load, "profile", method, tensors)
        return answer.value, answer.tensors

    def _child(self, artifact: Artifact) -> _ArtifactChild:
        if artifact not in self._children:
            self._children[artifact] = _ArtifactChild(self._setup(artifact), self._limits)
        return self._children[artifact]

    def _setup(self, artifact: Artifact | None) -> Setup:
        path = artifact.path if artifact else None
        module, name = self._make.__module__, self._make.__qualname__
        what = f"{path} on {self.name}" if path else f"runtime {self.name}"
        return Setup(module, name, self._arguments, path, what, self._place)


@functools.cache
def _why_unavailable(setup: Setup, limits: Limits) -> str | None:
    process = _Process(setup, limits.end)
    try:
        reason: str | None = process.ask(limits.other, "unavailable").value
        return reason
    finally:
        process.end()


class _RemoteMethod:
    def __init__(self, child: _ArtifactChild, name: str) -> None:
        self.name = name
        self._child = child
        self.inputs, self.outputs = child.load(name)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._child.call(self.name, tensors)


class _ArtifactChild:
    """An artifact's process, and the next one after it has died."""

    def __init__(self, setup: Setup, limits: Limits) -> None:
        self._setup = setup
        self._limits = limits
        self._process: _Process | None = None
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
                self._process = _Process(self._setup, self._limits.end)
            try:
                answer = self._process.ask(seconds, verb, method, tensors)
            finally:
                if not self._process.is_alive:
                    self._process = None
                    self._loaded.clear()
        _overhead.ns = overhead_ns() + time.perf_counter_ns() - start - answer.ns
        add_core_ml_ns(answer.core_ml_ns)
        return answer


def _specs(rows: list[tuple[str, list[int], str]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in rows)


class _Process:
    """A child process, and the memory in which tensors pass to it and back.

    On macOS it has a home of its own for caches (Foundation reads CFFIXED_USER_HOME): ExecuTorch's
    Core ML backend keeps compiled models in `Library/Caches` by the package's identifier, by which
    an edited copy of an artifact would run as the sound one.
    """

    def __init__(self, setup: Setup, end_seconds: float) -> None:
        files = anonymous_file(), anonymous_file()
        for file in files:
            finalize(self, os.close, file)
        self._sent, self._received = (SharedTensors(file) for file in files)
        described = {
            "descriptors": files,
            "module": setup.module,
            "class": setup.class_name,
            "arguments": setup.arguments,
            "path": None if setup.path is None else str(setup.path),
        }
        python, path = sys.executable, python_path()
        if setup.place:
            found = placed(setup.place)
            python = str(found.python or python)
            folder = ExitStack()
            path = folder.enter_context(python_path_of(found))
            finalize(self, folder.close)
        # The child installs the stand-in for Core ML if this process has done so.
        if is_installed() or (setup.place and sys.platform != "darwin"):
            path = os.pathsep.join([str(SITE), path])
        with ExitStack() as stack:
            home = stack.enter_context(private_folder("harness-home"))
            for name in ("Caches", "Application Support"):
                (home / "Library" / name).mkdir(parents=True)
            self._child = Child(
                CHILD,
                setup.what,
                {"PYTHONPATH": path, "CFFIXED_USER_HOME": str(home)},
                arguments=[json.dumps(described)],
                descriptors=files,
                python=python,
            )
            self.end = finalize(self, _end, self._child, end_seconds, stack.pop_all().close)

    @property
    def is_alive(self) -> bool:
        """Whether the child has neither died nor been ended."""
        return self._child.end.alive

    def ask(
        self, seconds: float, verb: str, method: str = "", tensors: Sequence[torch.Tensor] = ()
    ) -> Answer:
        """Ask the child; raises what the runtime raised, CrashError and CallTimeoutError."""
        asked = f"asked to {verb} method '{method}'" if method else f"asked for '{verb}'"
        request = {"verb": verb, "method": method, "tensors": self._sent.write(tensors)}
        answer = self._child.ask(request, asked, seconds)
        copies = tuple(tensor.clone() for tensor in self._received.read(answer["tensors"]))
        return Answer(answer["value"], copies, int(answer["ns"]), int(answer["core_ml_ns"]))


def _end(child: Child, seconds: float, remove_home: Callable[[], None]) -> None:
    """Let a child unload its methods, then end it and remove its home, even when interrupted."""
    with ExitStack() as stack:
        stack.callback(remove_home)
        stack.callback(child.end)
        if child.end.alive:
            with suppress(HarnessError):  # it has died, or hangs
                child.ask({"verb": "end", "method": "", "tensors": []}, "asked to end", seconds)


_overhead = threading.local()


def overhead_ns() -> int:
    """Return how long this thread has waited for children beyond the runtimes' own time.

    The overhead is starting children, importing, and moving tensors. A caller that times a call
    subtracts what this grew by meanwhile, and has the runtime's own time.
    """
    total: int = getattr(_overhead, "ns", 0)
    return total
