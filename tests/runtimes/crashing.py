"""Runtimes that misbehave, for the tests of isolation; imported in a child process."""

import os
import signal
import time

from harness.errors import NotInstalledError
from harness.runtimes.mil import MilRuntime


class Misbehaving(MilRuntime):
    """Loads as `mil:widen` does; what it is called with says what goes wrong, and when."""

    def __init__(self, when, what):
        super().__init__("widen")
        self.name = f"misbehaving:{what}"
        self._when, self._what = when, what

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
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(3)
            case "hang":
                time.sleep(600)
            case "missing":
                raise NotInstalledError("no such part")
            case "bug":
                raise ZeroDivisionError("a bug")
