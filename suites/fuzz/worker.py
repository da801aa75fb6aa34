"""A child process that attempts cases, in limited memory: a line of JSON before and after each.

`python -m harness.suites.fuzz.worker FOLDER SEED FIRST END`. The parent counts the seconds and sees
a crash; this side knows the memory, and what kind of error ended an attempt.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from pathlib import Path

from harness.errors import HarnessError
from harness.suites.fuzz.cases import Case, Sources

GIGABYTE = 1 << 30
SLACK = 256 << 20  # address space that is mapped and not used: arenas, stacks of threads


def attempt(case: Case, what: str) -> dict[str, object]:
    """Attempt a case; return what became of it, its seconds of processor's time, and its memory."""
    allowed = 4 * case.size + GIGABYTE
    in_use = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + allowed + SLACK, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, start = _status("VmRSS"), time.process_time()
    outcome, said = _outcome(case, what)
    taken = _status("VmHWM") - before
    if taken > allowed:
        outcome = "memory"
    seconds = round(time.process_time() - start, 3)
    return {"outcome": outcome, "said": said, "seconds": seconds, "memory": taken}


def _outcome(case: Case, what: str) -> tuple[str, str]:
    try:
        executed = case.run()
    except HarnessError as error:
        said = str(error)
        if _asked_for_too_much(error):
            return "memory", said
        return ("refused" if what in said else "nameless"), said
    except MemoryError as error:
        return "memory", repr(error)
    except Exception:
        return "exception", traceback.format_exc(limit=-4)
    return ("executed" if executed else "loaded"), ""


def _asked_for_too_much(error: BaseException | None) -> bool:
    """Whether an allocation failed somewhere below: that it was refused does not excuse it."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _status(field: str) -> int:
    """A field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def main() -> None:
    """Attempt a range of cases."""
    import torch

    torch.set_num_threads(1)
    folder, seed, first, end = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    sources = Sources(folder)
    sources.check()
    for number in range(first, end):
        case = sources.case(seed, number)
        print(json.dumps({"case": number, "kind": case.kind}), flush=True)
        print(json.dumps(attempt(case, "mutated")), flush=True)


if __name__ == "__main__":
    main()
