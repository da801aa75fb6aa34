"""The child process that makes cases and attempts them, in limited memory.

The parent counts the seconds and sees a crash. This side measures the memory, and knows what kind
of error ended an attempt.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Any

from harness.child import ARGUMENTS, limit_memory, memory_status, serve
from harness.errors import HarnessError
from harness.suites.fuzz.cases import Case, Sources

GIGABYTE = 1 << 30
SLACK = 256 << 20  # address space that is mapped and not used: arenas, stacks of threads


def attempt(case: Case, what: str) -> dict[str, object]:
    """Attempt a case; return its outcome, its seconds of processor's time, and its memory."""
    allowed = 4 * case.size + GIGABYTE
    limit_memory(allowed + SLACK)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, start = memory_status("VmRSS"), time.process_time()
    outcome, said = _outcome(case, what)
    taken = memory_status("VmHWM") - before
    if taken > allowed:
        outcome = "memory"
    seconds = round(time.process_time() - start, 3)
    return {"outcome": outcome, "said": said, "seconds": seconds, "memory": taken}


def _outcome(case: Case, what: str) -> tuple[str, str]:
    try:
        executed = case.run()
    except HarnessError as error:
        said = str(error)
        if asked_for_too_much(error):
            return "memory", said
        return ("refused" if what in said else "nameless"), said
    except MemoryError as error:
        return "memory", repr(error)
    except Exception:
        return "exception", traceback.format_exc(limit=-4)
    return ("executed" if executed else "loaded"), ""


def asked_for_too_much(error: BaseException | None) -> bool:
    """Return whether an allocation failed somewhere below: to be refused does not excuse it."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Worker:
    """Makes one case after another; the parent learns a case's kind before it is attempted."""

    def __init__(self, sources: Sources, seed: int) -> None:
        self._sources = sources
        self._seed = seed
        self._cases: dict[int, Case] = {}

    def answer(self, request: dict[str, int]) -> Any:
        """Make a case and return its kind, or attempt the case that was made."""
        match request:
            case {"make": number}:
                self._cases = {number: self._sources.case(self._seed, number)}
                return self._cases[number].kind
            case {"attempt": number}:
                return attempt(self._cases[number], "mutated")
        raise ValueError(request)


def main() -> None:
    """Execute the sound artifacts, then serve."""
    import torch

    torch.set_num_threads(1)
    folder, seed = sys.argv[ARGUMENTS:]
    sources = Sources(Path(folder))
    sources.check()
    serve(Worker(sources, int(seed)).answer)


if __name__ == "__main__":
    main()
