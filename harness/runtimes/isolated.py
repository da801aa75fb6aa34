"""Runs another runtime in a child process, so that its crash or hang is an outcome, not our end.

One child per artefact; it is started when it is first needed, and again after it has died. Tensors
go through a pipe as numpy arrays.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
import torch

from harness.artifact import Artifact, open_artifact
from harness.errors import HarnessError, NotInstalledError
from harness.runtimes.base import Method, Runtime

LOAD_SECONDS = 900.0  # compiling a large model for the Neural Engine takes minutes
CALL_SECONDS = 120.0
_ERRORS = {error.exit_status: error for error in (HarnessError, NotInstalledError)}
_STDERR_SHOWN = 500


class CrashError(HarnessError):
    """The runtime's process died; ``signal`` says how ("SIGSEGV", "exit status 3")."""

    def __init__(self, message: str, signal: str) -> None:
        super().__init__(message)
        self.signal = signal


class CallTimeoutError(HarnessError):
    """The runtime did not answer in time; its process was killed."""

    timed_out = True


class IsolatedRuntime:
    """A runtime in child processes; ``make`` must be importable, for it is called in the child."""

    def __init__(
        self,
        make: Callable[..., Runtime],
        *arguments: str,
        load_seconds: float = LOAD_SECONDS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._make = make, arguments
        self._limits = {"load": load_seconds, "call": call_seconds}
        self._here = make(*arguments)
        self.name = self._here.name
        self._children: WeakKeyDictionary[Artifact, _Child] = WeakKeyDictionary()

    def unavailable(self) -> str | None:
        """Say why the runtime cannot be used here; asked in this process, without loading."""
        return self._here.unavailable()

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method in the artefact's child.

        Raises what the runtime raises, CrashError when the child dies, CallTimeoutError when it
        does not answer.
        """
        if artifact not in self._children:
            child = _Child(self.name, self._make, artifact.path, self._limits)
            self._children[artifact] = child
            finalize(artifact, child.stop)
        return _RemoteMethod(self._children[artifact], method)


class _RemoteMethod:
    def __init__(self, child: _Child, name: str) -> None:
        self.name = name
        self._child = child
        self.inputs, self.outputs = child.load(name)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
        return tuple(torch.from_numpy(array) for array in self._child.call(self.name, arrays))


class _Child:
    """A process that serves one artefact on one runtime."""

    def __init__(
        self, name: str, make: tuple[Any, tuple[str, ...]], path: Path, limits: dict[str, float]
    ) -> None:
        self._what = f"{path} on {name}"
        self._arguments = (make, str(path))
        self._limits = limits
        self._process: Any = None
        self._pipe: Connection | None = None
        self._stderr: Path | None = None
        self._loaded: set[str] = set()

    def load(self, method: str) -> Any:
        """Load a method; return its inputs and outputs."""
        answer = self._ask("load", method)
        self._loaded.add(method)
        return answer

    def call(self, method: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Call a method; after a crash it is loaded again first."""
        if method not in self._loaded:
            self.load(method)
        answer: list[np.ndarray] = self._ask("call", method, arrays)
        return answer

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._stderr is not None:
            self._stderr.unlink(missing_ok=True)
        self._process = self._pipe = self._stderr = None
        self._loaded.clear()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        handle, name = tempfile.mkstemp(prefix="harness-stderr-")
        os.close(handle)
        self._stderr = Path(name)
        arguments = (theirs, name, *self._arguments)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe

    def _ask(self, verb: str, *content: Any) -> Any:
        pipe = self._pipe or self._start()
        try:
            pipe.send((verb, *content))
            if not pipe.poll(self._limits[verb]):
                raise self._timed_out(verb, content[0])
            kind, answer = pipe.recv()
        except (EOFError, OSError):
            raise self._crashed(verb, content[0]) from None
        except KeyboardInterrupt:
            self.stop()
            raise
        if kind == "answer":
            return answer
        raise _ERRORS.get(kind, HarnessError)(answer)

    def _timed_out(self, verb: str, method: str) -> CallTimeoutError:
        seconds = self._limits[verb]
        self.stop()
        return CallTimeoutError(
            f"{self._what}: to {verb} method '{method}' took over {seconds:g} s; its process was "
            "ended"
        )

    def _crashed(self, verb: str, method: str) -> CrashError:
        self._process.join(timeout=10)
        status = self._process.exitcode
        died = signal.Signals(-status).name if status and status < 0 else f"exit status {status}"
        said = ""
        if self._stderr is not None and (text := self._stderr.read_text(errors="replace").strip()):
            said = f"; it last said: {' '.join(text[-_STDERR_SHOWN:].split())}"
        self.stop()
        return CrashError(
            f"{self._what}: its process died ({died}) asked to {verb} method '{method}'{said}", died
        )


def _serve(
    pipe: Connection, stderr: str, make: tuple[Callable[..., Runtime], tuple[str, ...]], path: str
) -> None:
    """Answer requests until the pipe closes, which it also does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    sys.stderr.flush()
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    artifact = open_artifact(path)
    function, arguments = make
    runtime, methods = function(*arguments), dict[str, Method]()
    while True:
        try:
            verb, method, *content = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if verb == "load":
                methods[method] = runtime.load(artifact, method)
                answer: Any = (methods[method].inputs, methods[method].outputs)
            else:
                tensors = [torch.from_numpy(array) for array in content[0]]
                answer = [tensor.numpy() for tensor in methods[method](*tensors)]
            pipe.send(("answer", answer))
        except HarnessError as error:
            pipe.send((error.exit_status, str(error)))
        except Exception as error:
            pipe.send((2, f"{path}, method '{method}': {type(error).__name__}: {error}"))
