"""The child's side of `isolated`: one runtime, one artifact, and the methods that are loaded.

Requests travel by `harness.child`. Their tensors lie in memory that both processes share. Measured
on two cores, with 60 tensors as a decode step of SmolLM2 passes them: 12 MB took 19 ms through a
pipe and 5 to 9 ms this way; 47 MB took 133 ms and 11 to 17 ms.
"""

from __future__ import annotations

import gc
import importlib
import json
import mmap
import operator
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from harness.artifact import Artifact, open_artifact
from harness.child import ARGUMENTS, peak_memory, serve
from harness.errors import HarnessError
from harness.runtimes.base import Method, Runtime, core_ml_ns

PROFILE_ROUNDS = 10
_ALIGNMENT = 64  # bytes; enough for any dtype, and a cache line

TensorLocation = tuple[str, list[int], int]  # dtype ("float16"), shape, offset in bytes


def anonymous_file() -> int:
    """Return the descriptor of a file without a name, in memory where the system has that."""
    if sys.platform == "linux":
        return os.memfd_create("harness-tensors")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedTensors:
    """One direction of traffic, over a file that both processes have open; it only grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = torch.empty(0, dtype=torch.uint8)  # the file, mapped

    def write(self, tensors: Sequence[torch.Tensor]) -> list[TensorLocation]:
        """Write tensors over the earlier ones; return the locations that the other side reads."""
        locations: list[TensorLocation] = []
        end = 0
        for tensor in tensors:
            locations.append((str(tensor.dtype).removeprefix("torch."), list(tensor.shape), end))
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > self._bytes.numel():
            os.ftruncate(self._descriptor, end)
        for tensor, view in zip(tensors, self.read(locations), strict=True):
            view.copy_(tensor.detach())
        return locations

    def read(self, locations: Sequence[TensorLocation]) -> list[torch.Tensor]:
        """Return views: they change when the other side writes again."""
        return [
            self._view(getattr(torch, dtype), shape, start) for dtype, shape, start in locations
        ]

    def _view(self, dtype: torch.dtype, shape: list[int], start: int) -> torch.Tensor:
        count = torch.Size(shape).numel() * dtype.itemsize
        if count and start + count > self._bytes.numel():
            self._bytes = torch.frombuffer(mmap.mmap(self._descriptor, 0), dtype=torch.uint8)
        return self._bytes[start : start + count].view(dtype).reshape(shape)


class Server:
    """One runtime and one artifact, as the parent's `Setup` describes them."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._methods: dict[str, Method] = {}
        self._sent, self._received = (SharedTensors(file) for file in setup["descriptors"])

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

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for; return the value, the tensors, and the time in nanoseconds.

        The time leaves out imports; `core_ml_ns` is the part that Core ML told. Raises
        HarnessError for whatever the runtime raises.
        """
        verb, method = request["verb"], request["method"]
        if verb == "end":
            self._methods.clear()
            vars(self).pop("_runtime", None)
            gc.collect()  # what Core ML has compiled is removed with its models
            return {"value": None, "tensors": [], "ns": 0, "core_ml_ns": 0}
        try:
            self._prepare(verb)
            tensors = self._sent.read(request["tensors"])
            start, told = time.perf_counter_ns(), core_ml_ns()
            value, outputs = _VERBS[verb](self, method, tensors)
            took = time.perf_counter_ns() - start
            times = {"ns": took, "core_ml_ns": core_ml_ns() - told}
            return {"value": value, "tensors": self._received.write(outputs), **times}
        except HarnessError:
            raise
        except Exception as error:
            where = f"{verb} of method '{method}' failed in the runtime"
            raise HarnessError(f"{where}: {type(error).__name__}: {error}") from error

    def _prepare(self, verb: str) -> None:
        """Import what a runtime needs, which no figure should count."""
        _ = self._unavailable
        if verb in ("load", "profile"):
            _ = self._memory_before, self._artifact

    def unavailable(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Return why the runtime cannot be used here, or None."""
        return self._unavailable, ()

    def load(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Load a method; return its inputs and outputs as [name, shape, dtype]."""
        loaded = self._methods[method] = self._runtime.load(self._artifact, method)
        sides = loaded.inputs, loaded.outputs
        return [[(spec.name, spec.shape, spec.dtype) for spec in side] for side in sides], ()

    def call(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Call a loaded method."""
        return None, self._methods[method](*tensors)

    def profile(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Return the times and the placement of a method; see `CoreMLRuntime.profile`."""
        runtime: Any = self._runtime
        facts, results = runtime.profile(self._artifact, method, tensors, PROFILE_ROUNDS)
        return facts, results

    def measure(self, method: str, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
        """Return the peak of memory in bytes: before the first method was loaded, and by now."""
        return [self._memory_before, peak_memory()], ()


_VERBS = {
    "unavailable": Server.unavailable,
    "load": Server.load,
    "call": Server.call,
    "profile": Server.profile,
    "measure": Server.measure,
}

if __name__ == "__main__":
    serve(Server(json.loads(sys.argv[ARGUMENTS])).answer)
