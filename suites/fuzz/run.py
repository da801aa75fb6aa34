"""Runs cases in child processes, one after another: a crash or a hang ends a child, not the run."""

from __future__ import annotations

import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

SECONDS = 10.0  # that a case may take: of the processor's time, which a busy machine stretches
LONGEST = 120.0  # that it may take by the clock: what waits for ever takes no processor's time
STARTING = 300.0  # that a child may take to import and to execute what is sound
SOUND = frozenset({"executed", "loaded", "refused"})


@dataclass(frozen=True)
class Result:
    """What became of a case: `executed`, `loaded` (not called: its inputs are too large to be
    made), `refused` with a sentence; or `exception`, `nameless` (a sentence that does not say
    which artifact), `memory`, `hang`, `crash`."""

    case: int
    kind: str
    outcome: str
    said: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def passes(self) -> bool:
        """Whether it is what may become of a mutated artifact."""
        return self.outcome in SOUND


def results(folder: Path, seed: int, first: int, end: int) -> Iterator[Result]:
    """Yield the result of every case; raises RuntimeError when a child fails between cases, as it
    does when what is sound is not executed."""
    while first < end:
        child = _Child(folder, seed, first, end)
        try:
            for result in child.results():
                yield result
                first = result.case + 1
        finally:
            child.end()


class _Child:
    def __init__(self, folder: Path, seed: int, first: int, end: int) -> None:
        command = [sys.executable, "-m", "harness.suites.fuzz.worker", folder, seed, first, end]
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        threading.Thread(
            target=self._errors.extend, args=(self._process.stderr,), daemon=True
        ).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def results(self) -> Iterator[Result]:
        """Yield results until the range is done, or the child is."""
        patience = STARTING
        while (started := self._next(patience)) is not None:
            assert started, "a child hangs between two cases"
            finished = self._finished()
            if finished:
                yield Result(**started, **finished)
            elif finished is None:
                yield Result(**started, outcome="crash", said="".join(self._errors[-20:]))
                return
            else:
                yield Result(**started, outcome="hang")
                return
            patience = STARTING
        status = self._process.wait()
        if status:
            raise RuntimeError(f"a child ended with {status}: {''.join(self._errors[-20:])}")

    def _finished(self) -> dict[str, Any] | None:
        """As `_next`, while a case has time left by the processor and by the clock."""
        end, limit = time.monotonic() + LONGEST, self._processor() + SECONDS
        while (line := self._next(0.5)) == {}:
            if time.monotonic() > end or self._processor() > limit:
                return {}
        return line

    def _processor(self) -> float:
        """The seconds of processor's time that the child has taken; infinite once it is gone."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return math.inf
        return float(times.user + times.system)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next line; an empty dict when none comes in time, None at the end."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return {}
        return None if line is None else dict(json.loads(line))

    def end(self) -> None:
        """End the child, if it is still there."""
        self._process.kill()
        self._process.wait()


def counted(found: list[Result]) -> str:
    """The counts, by kind and outcome; and the longest and the largest case."""
    lines = []
    for kind in sorted({result.kind for result in found}):
        outcomes = Counter(result.outcome for result in found if result.kind == kind)
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
        lines.append(f"{kind:8} {said}")
    slowest = max(found, key=lambda result: result.seconds)
    largest = max(found, key=lambda result: result.memory)
    failed = sum(not result.passes for result in found)
    lines += [
        f"longest: {slowest.seconds:.1f} s (case {slowest.case}); "
        f"most memory: {largest.memory / 1e6:.0f} MB (case {largest.case})",
        f"{len(found):,} cases, {failed} failed",
    ]
    return "\n".join(lines)
