"""The child's side of `child_process`: serves requests until its parent has gone.

A request and its answer are a line of JSON each; tensors lie in shared memory.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import operator
import os
import resource
import shutil
import sys
import threading
import time
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.artifact import Artifact, open_artifact
from harness.errors import HarnessError
from harness.runtimes.base import Method, Runtime
from harness.runtimes.shared_tensors import SharedTensors

_GRACE_SECONDS = 5.0


class Server:
    """One runtime and one artifact, with the methods that were loaded."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._methods: dict[str, Method] = {}

    @cached_property
    def _runtime(self) -> Runtime:
        module = importlib.import_module(self._setup["module"])
        make = operator.attrgetter(self._setup["class"])(module)
        runtime: Runtime = make(*self._setup["arguments"])
        return runtime

    @cached_property
    def _unavailable(self) -> str | None:
        return self._runtime.unavailable()

    @cached_property
    def _artifact(self) -> Artifact:
        return open_artifact(self._setup["path"])

    @cached_property
    def _memory_before(self) -> int:
        return peak_memory()

    def prepare(self, verb: str) -> None:
        """Import what a runtime needs, which no figure should count."""
        _ = self._unavailable
        if verb == "load":
            _ = self._memory_before, self._artifact

    def unavailable(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Why the runtime cannot be used here, or None."""
        return self._unavailable, ()

    def load(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Load a method: its inputs and outputs as [name, shape, dtype]."""
        loaded = self._methods[method] = self._runtime.load(self._artifact, method)
        sides = loaded.inputs, loaded.outputs
        return [[(spec.name, spec.shape, spec.dtype) for spec in side] for side in sides], ()

    def call(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Call a loaded method."""
        return None, self._methods[method](*tensors)

    def measure(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Bytes of memory: the peak before the first method was loaded, and the peak by now."""
        return [self._memory_before, peak_memory()], ()


_VERBS = {
    "unavailable": Server.unavailable,
    "load": Server.load,
    "call": Server.call,
    "measure": Server.measure,
}


def answer(
    server: Server, request: dict[str, Any], sent: SharedTensors, received: SharedTensors
) -> dict[str, Any]:
    """Do what a request asks for; returns the answer and the time it took, without imports."""
    try:
        server.prepare(request["verb"])
        tensors = sent.read(request["tensors"])
        start = time.perf_counter_ns()
        result, outputs = _VERBS[request["verb"]](server, request["method"], tensors)
        took = time.perf_counter_ns() - start
        return {"answer": result, "tensors": received.write(outputs), "ns": took}
    except HarnessError as error:
        return {"error": error.exit_status, "message": str(error)}
    except Exception as error:
        where = f"{request['verb']} of method '{request['method']}'"
        return {
            "error": HarnessError.exit_status,
            "message": f"{where} failed in the runtime: {type(error).__name__}: {error}",
        }


def peak_memory() -> int:
    """Return this process's largest resident set, in bytes.

    Linux's `getrusage` starts from the parent's memory; its VmHWM does not.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _end_with_the_parent(folder: str) -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)  # nobody else is left to do it
    os._exit(1)


def main() -> None:
    """Serve the artifact that the command line names."""
    setup = json.loads(sys.argv[1])
    watcher = threading.Thread(target=_end_with_the_parent, args=(setup["folder"],), daemon=True)
    watcher.start()
    connection, sent, received = setup["descriptors"]
    pipe, inputs, outputs = Connection(connection), SharedTensors(sent), SharedTensors(received)
    server = Server(setup)
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return watcher.join()
        # Native code that hangs may hold the lock that the thread above needs; this needs none.
        faulthandler.dump_traceback_later(request["seconds"] + _GRACE_SECONDS, exit=True)
        done = answer(server, request, inputs, outputs)
        faulthandler.cancel_dump_traceback_later()
        pipe.send_bytes(json.dumps(done).encode())


if __name__ == "__main__":
    main()
