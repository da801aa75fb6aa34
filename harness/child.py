"""One protocol for child processes: a crash, a hang or full memory ends the child, not the parent.

A parent starts a module as a `Child` and sends it requests; the module calls `serve` with the
function that answers them. Requests and replies are JSON, framed by their length, over a pair of
sockets.

A child is a new Python process. A fork or a `multiprocessing` process would copy the state of torch
and Core ML, or run the caller's main script again. This module imports only the standard library
and the rooms below it, so that a child may run under another interpreter.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from weakref import finalize

from harness.errors import (
    CallTimeoutError,
    ChildError,
    CrashError,
    HarnessError,
    NotInstalledError,
)
from harness.files import private_folder

POLICY_VARIABLE = "HARNESS_POLICY"
"""The variable that names the number policy under `harness shim`; `strict` by default."""
ARGUMENTS = 3  # where a module's own arguments begin in its `sys.argv`
_ERRORS = {error.exit_status: error for error in (HarnessError, NotInstalledError)}
_LAST_WORDS = 500  # characters of a child's output that a message repeats
_LINES_BYTES = 1 << 20  # of the output that one read takes
_LOOK_SECONDS = 0.1  # between two looks at a child that has not replied
_EXIT_SECONDS = 10.0  # from the end of a child's connection to the end of its process
_GRACE_SECONDS = 5.0  # that a child waits for its parent to end it before it ends itself


class Child:
    """A Python process that answers requests, in a process group and a temporary folder of its own.

    `end` ends it and all processes that it started, and deletes the folder. So do the end of a
    `with` block, garbage collection, and the end of this process, even by SIGKILL.
    """

    def __init__(
        self,
        module: str,
        what: str,
        environment: Mapping[str, str] | None = None,
        *,
        arguments: Sequence[str] = (),
        descriptors: Sequence[int] = (),
        python: str = sys.executable,
    ) -> None:
        """Start `python -m module`; messages name the child as `what`.

        The module finds `arguments` in `sys.argv[ARGUMENTS:]`. `environment` is added to ours;
        unless it has a PYTHONPATH, the child can import everything that this process can.
        `descriptors` are open in the child under the same numbers. `python` must be version 3.11 or
        later.

        Raises HarnessError when the process cannot be started.
        """
        self._what = what
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it can be read after the end
        finalize(self, self._output.close)
        self._followed = 0  # bytes
        with ExitStack() as stack:
            folder = stack.enter_context(private_folder("harness-child"))
            ours, theirs = socket.socketpair()
            self._pipe = stack.enter_context(Connection(ours.detach()))
            with theirs:
                command = [python, "-P", "-u", "-m", module, str(theirs.fileno()), str(folder)]
                command += arguments
                variables = {"PYTHONPATH": python_path(), **(environment or {})}
                passed = (theirs.fileno(), *descriptors)
                self._process = _start(command, variables, passed, folder, self._output)
            stack.callback(_kill_group, self._process)
            self.end = finalize(self, stack.pop_all().close)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def ask(
        self,
        request: object,
        doing: str,
        seconds: float | None = None,
        *,
        processor_seconds: float | None = None,
        follow: Callable[[str], None] | None = None,
    ) -> Any:
        """Send a request and return the answer; both are values of JSON.

        `doing` describes the request in messages. `seconds` limits the time by the clock,
        `processor_seconds` the processor's time. `follow` is called with each line that the child
        prints meanwhile.

        Raises the child's own HarnessError or NotInstalledError, and ChildError for any other
        exception in the child; the child then keeps running. Raises CrashError when the process
        dies, and CallTimeoutError when it exceeds a limit; the child is then ended, as it is after
        an interrupt.
        """
        framed = json.dumps({"request": request, "seconds": seconds}).encode()
        try:
            with self._death_reported(doing):
                self._pipe.send_bytes(framed)
            self._wait(doing, seconds, processor_seconds, follow)
            with self._death_reported(doing):
                reply = json.loads(self._pipe.recv_bytes())
        except BaseException:  # the next answer would belong to the abandoned request
            self.end()
            raise
        match reply:
            case {"value": value}:
                return value
            case {"status": status, "message": message}:
                raise _ERRORS.get(status, HarnessError)(message)
        raise ChildError(f"{self._what}: {doing}, it failed", reply["kind"], reply["reason"])

    def output(self, last: int | None = None) -> bytes:
        """Return what the child has printed to stdout and stderr, or its last bytes."""
        size = os.fstat(self._output.fileno()).st_size
        start = 0 if last is None else max(0, size - last)
        # Not `seek`: the child writes at the position that both processes share.
        return os.pread(self._output.fileno(), size - start, start)

    def _wait(
        self,
        doing: str,
        seconds: float | None,
        processor_seconds: float | None,
        follow: Callable[[str], None] | None,
    ) -> None:
        """Wait until the child has replied or died; raises CallTimeoutError."""
        start, used = time.monotonic(), _processor_seconds(self._process.pid, processor_seconds)
        while not self._pipe.poll(
            _LOOK_SECONDS if seconds is None else min(seconds, _LOOK_SECONDS)
        ):
            self._report_lines(follow)
            if seconds is not None and time.monotonic() - start > seconds:
                raise self._timeout(doing, f"{seconds:g} s")
            taken = _processor_seconds(self._process.pid, processor_seconds) - used
            if processor_seconds is not None and taken > processor_seconds:
                raise self._timeout(doing, f"{processor_seconds:g} s of the processor's time")
        self._report_lines(follow)

    def _report_lines(self, follow: Callable[[str], None] | None) -> None:
        if follow is None:
            return
        while data := os.pread(self._output.fileno(), _LINES_BYTES, self._followed):
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) < _LINES_BYTES:
                return  # the line goes on
            data = data[: whole or len(data)]
            self._followed += len(data)
            for line in data.decode("utf-8", "replace").splitlines():
                follow(line)

    def _timeout(self, doing: str, limit: str) -> CallTimeoutError:
        return CallTimeoutError(
            f"{self._what}: {doing}, it took over {limit}; its process was ended"
            f"{self._last_words()}"
        )

    @contextmanager
    def _death_reported(self, doing: str) -> Iterator[None]:
        """Raise CrashError when the connection fails."""
        try:
            yield
        except (EOFError, OSError):
            died = self._how_it_died()
            raise CrashError(
                f"{self._what}: its process died ({died}) {doing}{self._last_words()}", died
            ) from None

    def _how_it_died(self) -> str:
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:  # a real-time signal
            return f"signal {-status}"

    def _last_words(self) -> str:
        text = " ".join(self.output(4 * _LAST_WORDS).decode("utf-8", "replace").split())
        return f"; it last said: {text[-_LAST_WORDS:]}" if text else ""


def python_path(*first: str) -> str:
    """Return a PYTHONPATH of the given entries and of this process's own."""
    return os.pathsep.join((*first, *(path or str(Path.cwd()) for path in sys.path)))


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer requests until the parent ends; the main program of a child's module calls this.

    `answer` takes a request and returns its answer, or raises.
    """
    descriptor, folder = int(sys.argv[1]), sys.argv[2]
    watcher = threading.Thread(target=_end_with_the_parent, args=(folder,), daemon=True)
    watcher.start()
    os.set_inheritable(descriptor, False)  # a process that this one starts must not keep it open
    pipe = Connection(descriptor)
    while True:
        try:
            asked = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return watcher.join()
        if asked["seconds"] is not None:
            # Hanging native code may hold the lock that the watcher needs; this timer needs none.
            faulthandler.dump_traceback_later(asked["seconds"] + _GRACE_SECONDS, exit=True)
        reply = _reply(answer, asked["request"])
        faulthandler.cancel_dump_traceback_later()
        pipe.send_bytes(json.dumps(reply).encode())


def _reply(answer: Callable[[Any], Any], request: Any) -> dict[str, Any]:
    try:
        return {"value": answer(request)}
    except HarnessError as error:
        return {"status": error.exit_status, "message": str(error)}
    except BaseException as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".") if lines else "no message"
        return {"kind": type(error).__name__, "reason": reason}


def peak_memory() -> int:
    """Return this process's largest resident set, in bytes.

    Linux's `getrusage` starts from the parent's memory; its VmHWM does not.
    """
    if sys.platform == "linux":
        return memory_status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_status(field: str) -> int:
    """Return a field of this process's status on Linux ("VmRSS"), in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def limit_memory(more: int) -> None:
    """Let this process map at most `more` bytes beyond what it has mapped; on Linux.

    A later call replaces the limit.
    """
    limit = memory_status("VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    descriptors: Sequence[int],
    folder: Path,
    output: IO[bytes],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: the child ends when it closes, so when we end
            stdout=output,
            stderr=output,
            # Files that it leaves in the temporary folder, even 100 MB, are deleted at its end.
            env={**os.environ, **environment, "TMPDIR": str(folder)},
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C reaches this process only, which ends the whole group
        )
    except OSError as error:
        raise HarnessError(f"{command[0]} cannot be started: {error.strerror}") from error


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a child's process group, even if the child itself has ended already."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses for an ended group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _processor_seconds(pid: int, limit: float | None) -> float:
    """Return the processor's time that a process has used, 0 without a limit."""
    if limit is None:
        return 0.0
    import psutil  # not at the top: a child's interpreter may lack it

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0  # it has died, and its connection will show it
    return float(times.user + times.system)


def _end_with_the_parent(folder: str) -> None:
    """Wait until standard input closes, then end this process, its own children and its folder."""
    while os.read(0, 1):  # not sys.stdin: its lock would block a normal exit
        pass
    shutil.rmtree(folder, ignore_errors=True)  # the parent, which would delete it, has ended
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
