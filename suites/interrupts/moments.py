"""A warm process that runs commands of `harness` up to a chosen moment, each in a fork of its own.

A moment is a call that changes the file system below the watched folders: it opens a file to write
it, makes a folder, renames or removes something. Moments count from 0. At the chosen one SIGINT
interrupts the command, or a signal kills the process. Between two moments a file may be written:
`limit` kills the process (SIGXFSZ) at the write that would make a file longer than so many bytes.
Only a limit reaches what libraries do in machine code, as coremltools does when it writes weights.
`seconds` of the processor's time kill the process, whatever it does then: on a busy machine, too,
that is the same part of the work.

`python -m harness.suites.interrupts.moments` reads one request a line, as JSON, and answers each.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

_LOOK_SECONDS = 0.01  # between two looks at a process's times
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Request:
    """A command line, and how it ends: at a moment, by `signal` SIGINT or SIGKILL; or at a size.

    Or SIGKILL ends it after `seconds` of the processor's time. `watched` are the folders in which
    moments count; `stand_in` is a module that replaces the process of ExecuTorch's exporter.
    `environment` is added to that of the process.
    """

    command: Sequence[str]
    watched: Sequence[str] = ()
    moment: int | None = None
    signal: str = "SIGINT"
    limit: int | None = None
    seconds: float | None = None
    stand_in: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the request as a line."""
        return json.dumps(asdict(self)) + "\n"


class _Clock:
    """Counts moments, and ends the process at the one that the request names."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self.count = 0

    def start(self, request: Request) -> None:
        """Count from 0, below the folders of this request."""
        self.request, self.count = request, 0

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a call (see `sys.addaudithook`); a call for which this raises does nothing."""
        if self.request is None or not self._counts(self.request, event, arguments):
            return
        self.count += 1
        if self.count - 1 != self.request.moment:
            return
        if self.request.signal == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

    @staticmethod
    def _counts(request: Request, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & WRITES)
        else:
            changes = event in CHANGES
        if not changes:
            return False
        # a removal inside a folder names the folder by a descriptor, and the file without its path
        inside = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        path = arguments[0]
        named = isinstance(path, str | Path) and str(path).startswith(tuple(request.watched))
        return inside or named


def main() -> None:
    """Serve requests until the input ends; the first runs in this process, to warm it up."""
    from harness.cli import main as harness
    from harness.export import executorch

    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    clock = _Clock()
    sys.addaudithook(clock.hook)
    warm = False
    for line in sys.stdin:
        request = Request(**json.loads(line))
        executorch.CHILD = request.stand_in or executorch.CHILD
        clock.start(request)
        if warm:
            answer = _forked(request, harness, clock)
        else:
            _enter(request.environment)
            answer, warm = {"status": harness(request.command), "moments": None}, True
        os.write(answers, f"{json.dumps(answer)}\n".encode())


def _enter(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another one now


def _forked(
    request: Request, harness: Callable[[Sequence[str]], int], clock: _Clock
) -> dict[str, float | None]:
    """Run a command in a fork; return its exit status, its number of moments, and its seconds.

    The status is the negative number of a signal if one killed the process, and the number of
    moments is then None. The seconds are those of the processor.
    """
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        if request.limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            resource.setrlimit(resource.RLIMIT_FSIZE, (request.limit, request.limit))
        status = 70
        try:
            _enter(request.environment)
            status = harness(request.command)
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            os.write(write, str(clock.count).encode())
            os._exit(status)
    os.close(write)
    if request.seconds is not None:
        _kill_after(child, request.seconds)
    _, ended, used = os.wait4(child, 0)
    with os.fdopen(read) as counted:
        count = counted.read()
    status = os.waitstatus_to_exitcode(ended)
    moments = int(count) if count else None
    return {"status": status, "moments": moments, "seconds": used.ru_utime + used.ru_stime}


def _kill_after(child: int, seconds: float) -> None:
    """Kill a process when it has used so many seconds of the processor; return if it ends first."""
    process = psutil.Process(child)
    while process.status() != psutil.STATUS_ZOMBIE:
        times = process.cpu_times()
        if times.user + times.system >= seconds:
            return process.kill()
        time.sleep(_LOOK_SECONDS)
    return None


if __name__ == "__main__":
    main()
