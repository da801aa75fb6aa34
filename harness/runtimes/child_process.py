"""A child process that serves one artifact on one runtime; see `_isolated_child` for its side.

It is a new Python process, not a fork or a `multiprocessing` one: those copy the state of torch and
Core ML, or run the caller's main script once more.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from weakref import finalize

import torch

from harness.errors import CallTimeoutError, CrashError, HarnessError, NotInstalledError
from harness.runtimes.shared_tensors import SharedTensors, anonymous_file
from harness.shim import is_installed
from harness.shim.launch import SITE

CHILD = "harness.runtimes._isolated_child"
_ERRORS = {error.exit_status: error for error in (HarnessError, NotInstalledError)}
_STDERR_SHOWN = 500  # characters
_LAST_WORDS_SECONDS = 10.0  # from the end of its connection to the end of a process


@dataclass(frozen=True)
class Served:
    """What a child serves: a runtime's class with its arguments, and the artifact, if any."""

    module: str
    class_name: str
    arguments: tuple[str, ...]
    path: Path | None
    what: str  # for messages


@dataclass(frozen=True)
class Answer:
    """What a child answered: a value, tensors, and the nanoseconds that the runtime took."""

    value: Any
    tensors: tuple[torch.Tensor, ...]
    ns: int


class ChildProcess:
    """One process, from its start to its end: its own, `end`, garbage collection, or our exit."""

    def __init__(self, served: Served) -> None:
        self._what = served.what
        folder = Path(tempfile.mkdtemp(prefix="harness-child-"))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        files = anonymous_file(), anonymous_file()
        self._sent, self._received = (SharedTensors(file) for file in files)
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        with theirs:
            self._process = _start(served, theirs.fileno(), files, folder, self._stderr)
        self.end = finalize(self, _end, self._process, self._pipe, folder, files)

    def ask(
        self, seconds: float, verb: str, method: str = "", tensors: Sequence[torch.Tensor] = ()
    ) -> Answer:
        """Send a request, and wait for its answer.

        Raises what the runtime raised, CrashError when the process dies, CallTimeoutError when it
        takes longer than `seconds`.
        """
        asked = f"asked to {verb} method '{method}'" if method else f"asked for '{verb}'"
        places = self._sent.write(tensors)
        request = {"verb": verb, "method": method, "tensors": places, "seconds": seconds}
        try:
            answer = self._exchange(request)
        except TimeoutError:
            self.end()
            raise CallTimeoutError(
                f"{self._what}: {asked}, it took over {seconds:g} s; its process was "
                f"ended{self._last_words()}"
            ) from None
        except (EOFError, OSError):
            died = self._how_it_died()
            self.end()
            raise CrashError(
                f"{self._what}: its process died ({died}) {asked}{self._last_words()}", died
            ) from None
        except BaseException:  # interrupted: what it answers next is no longer our answer
            self.end()
            raise
        if "error" in answer:
            raise _ERRORS.get(answer["error"], HarnessError)(answer["message"])
        copies = tuple(tensor.clone() for tensor in self._received.read(answer["tensors"]))
        return Answer(answer["answer"], copies, int(answer["ns"]))

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        self._pipe.send_bytes(json.dumps(request).encode())
        if not self._pipe.poll(request["seconds"]):
            raise TimeoutError
        answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        return answer

    def _how_it_died(self) -> str:
        try:
            status = self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:  # a real-time signal
            return f"signal {-status}"

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4 * _STDERR_SHOWN))
        text = " ".join(self._stderr.read().decode("utf-8", "replace").split())
        return f"; it last said: {text[-_STDERR_SHOWN:]}" if text else ""


def _start(
    served: Served, connection: int, files: tuple[int, int], folder: Path, stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start the process in a process group of its own: Ctrl-C reaches us alone, and we end it."""
    descriptors = connection, *files
    setup = {
        "descriptors": descriptors,
        "module": served.module,
        "class": served.class_name,
        "arguments": served.arguments,
        "path": None if served.path is None else str(served.path),
        "folder": str(folder),
    }
    # A stand-in for Core ML that is in place here is put in place there.
    entries = [str(SITE)] * is_installed() + [path or str(Path.cwd()) for path in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", CHILD, json.dumps(setup)],
        stdin=subprocess.PIPE,  # held open: the child ends when it closes, so when we end
        stdout=stderr,
        stderr=stderr,
        # What it leaves in the temporary folder, a package of 100 MB say, goes when it does.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entries), "TMPDIR": str(folder)},
        pass_fds=descriptors,
        process_group=0,
    )


def _end(
    process: subprocess.Popen[bytes], pipe: Connection, folder: Path, files: tuple[int, int]
) -> None:
    pipe.close()
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    for file in files:
        os.close(file)
    shutil.rmtree(folder, ignore_errors=True)
