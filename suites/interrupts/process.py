"""A test's side of the warm process of `moments`."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from harness.suites.interrupts.moments import Request

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 300.0  # seconds that a command may take


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, its moments, and its seconds.

    The number of moments is None for a process that was killed, and for the first, which warms up.
    The seconds are those of the processor.
    """

    status: int
    moments: int | None
    seconds: float = 0.0


class WarmProcess:
    """Runs requests one after another; the first must run to its end, to warm the process up."""

    def __init__(self, temporary: Path) -> None:
        paths = [str(ROOT), str(ROOT / "tests" / "export"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "TMPDIR": str(temporary),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",  # threads do not survive a fork
            "STAND_IN": "write_alike",  # see tests/export/stand_in_child.py
            "STAND_IN_SKIPS_CHECKPOINT": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.suites.interrupts.moments"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def run(self, request: Request) -> Ended:
        """Run a command to its end, or until the request ends it.

        Raises RuntimeError when there is no answer; the process has printed why.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(request.to_json())
        self._process.stdin.flush()
        answered, _, _ = select.select([self._process.stdout], [], [], LONGEST)
        answer = self._process.stdout.readline() if answered else ""
        if not answer:
            self._process.kill()
            raise RuntimeError(f"no answer to {request}")
        return Ended(**json.loads(answer))

    def close(self) -> None:
        """End the process, which is idle."""
        self._process.communicate()
