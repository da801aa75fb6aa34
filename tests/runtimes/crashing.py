"""Runtimes that misbehave, which the tests of isolation import in a child process."""

import ctypes
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from weakref import finalize

import torch

from harness.errors import NotInstalledError
from harness.runtimes.mil import MilRuntime

KEPT = []


class Misbehaving(MilRuntime):
    """Loads like `mil:widen`; its arguments choose the fault and its moment."""

    def __init__(self, when, what, detail=""):
        super().__init__("widen")
        self.name = f"misbehaving:{what}"
        self._when, self._what, self._detail = when, what, detail

    def unavailable(self):
        self._misbehave("unavailable")
        return f"asked in process {os.getpid()}"

    def load(self, artifact, method):
        self._misbehave("load")
        loaded = super().load(artifact, method)
        outer = self

        class Method:
            name, inputs, outputs = loaded.name, loaded.inputs, loaded.outputs

            def __call__(self, *tensors):
                outer._misbehave("call")
                return loaded(*tensors)

        return Method()

    def _misbehave(self, when):
        if when != self._when:
            return
        match self._what:
            case "segfault":
                os.write(2, b"about to crash\n")
                ctypes.string_at(0)
            case "segfault once":
                if not Path(self._detail).exists():
                    Path(self._detail).touch()
                    os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(3)
            case "hang":
                os.write(2, b"waiting for ever\n")
                self._tell_pid()
                time.sleep(600)
            case "hang with the lock":
                self._tell_pid()
                ctypes.PyDLL(None).sleep(600)
            case "wait":
                time.sleep(float(self._detail))
            case "litter":
                Path(self._detail).write_text(tempfile.mkdtemp(), encoding="utf-8")
                print("a word on stdout", flush=True)
                print("a word on stderr", file=sys.stderr, flush=True)
            case "home":
                caches = Path(os.environ["CFFIXED_USER_HOME"], "Library", "Caches")
                Path(self._detail).write_text(f"{caches} {caches.is_dir()}", encoding="utf-8")
            case "keep":
                finalize(self, Path(self._detail).touch)
            case "allocate":
                KEPT.append(torch.ones(int(self._detail) // 4))
            case "missing":
                raise NotInstalledError("no such part")
            case "bug":
                raise ZeroDivisionError("a bug")

    def _tell_pid(self):
        if self._detail:
            Path(self._detail).write_text(str(os.getpid()), encoding="utf-8")
