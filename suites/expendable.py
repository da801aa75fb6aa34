"""A child of a suite that may die: its end is an outcome, and the next request starts another."""

from __future__ import annotations

from typing import Any

from harness.child import Child
from harness.errors import CallTimeoutError, ChildError, CrashError, HarnessError


class Expendable:
    """A module that answers requests in a child process, for at most `seconds` of CPU each."""

    def __init__(self, module: str, what: str, stage: str, seconds: float) -> None:
        self._module, self._what = module, what
        self._stage, self._seconds = stage, seconds
        self._child: Child | None = None

    def ask(self, request: dict[str, Any], doing: str) -> dict[str, Any]:
        """Return the answer; the outcome and reason of a crash, a timeout or an error instead."""
        if self._child is None:
            self._child = Child(self._module, self._what)
        try:
            found: dict[str, Any] = self._child.ask(request, doing, processor_seconds=self._seconds)
            return found
        except CrashError as error:
            self._child = None
            return {"outcome": "crash", "signal": error.signal, "reason": str(error)}
        except CallTimeoutError as error:
            self._child = None
            return {"outcome": "timeout", "reason": str(error)}
        except (ChildError, HarnessError) as error:
            return {"outcome": "error", "stage": self._stage, "reason": str(error)}

    def end(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None


def sentence(error: BaseException) -> str:
    """Return an error's kind and first line, of at most 300 characters: what a child answers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
