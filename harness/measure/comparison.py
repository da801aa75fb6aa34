"""Two artifacts timed against each other: decode, prefill and load, or calls; and peak memory.

A visit loads an artifact and passes over one sequence several times. Other work on the machine only
adds time, so the least time of each step counts, and the steps are added. Four visits are a block
(see `statistics`), and blocks follow until each metric has a verdict or the seconds are spent.

Two loads of one artifact may differ in speed, for example by where their weights lie in memory.
Each visit therefore loads anew, unless loading takes longer than measuring: then one session of
head and two of base serve all blocks, and the control shows by how much loads differ.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from harness.artifact import open_artifact
from harness.generate.session import Session
from harness.measure.statistics import (
    BLOCKS_PER_LOOK,
    FIRST_LOOK,
    Block,
    Comparison,
    Estimate,
    Goal,
    compare,
    is_look,
)
from harness.measure.timing import Calls, Memory, Stopwatch, milliseconds
from harness.subject import Subject

MIN_PASSES, MAX_PASSES = 2, 8  # of a visit
USUAL_BLOCKS = 14  # fit into the seconds, if visits are made as long as that allows
MIN_BLOCKS_OF_RATE = 4  # before the time of a block is known
LOAD_GOAL = (
    0.1,
    0.03,
)  # found and tolerated, at least: a load has no steps of which to take the least
MIN_MEMORY_SAMPLES, MAX_MEMORY_SAMPLES = 2, 5
ALLOCATOR_BYTES = 1 << 20  # a smaller difference between two peaks means nothing

# The order of a block's visits; base's two loads take turns in being first, and so do the sides.
ORDERS = (
    ("base", "head", "head", "second base"),
    ("head", "base", "second base", "head"),
    ("second base", "head", "head", "base"),
    ("head", "second base", "base", "head"),
)

Steps = Mapping[str, Sequence[float]]
Pass = Callable[[], Steps]
"""Runs a sequence, checks the results; returns the milliseconds of each step, by metric."""


@dataclass(frozen=True)
class Timed:
    """One metric of two artifacts: the median of each side's visits, and the comparison."""

    name: str
    unit: str
    base: float
    head: float
    found: Comparison

    def numbers(self) -> dict[str, float | list[float]]:
        """Return what the verdict rests on, for JSON, without what is not finite."""
        head, control = self.found.head, self.found.control
        numbers: dict[str, list[float]] = {
            "ratio": [head.ratio],
            "interval": [head.low, head.high],
            "p": [self.found.p],
            "samples": [self.found.blocks],
            "control": [control.ratio],
            "control interval": [control.low, control.high],
        }
        finite = {name: row for name, row in numbers.items() if all(map(math.isfinite, row))}
        return {name: row if len(row) > 1 else row[0] for name, row in finite.items()}


class Side(Protocol):
    """An artifact on a runtime; `tokens` are those of a pass, by metric."""

    @property
    def tokens(self) -> Mapping[str, int]:
        """The number of tokens by which a metric is divided; a call has none."""

    def load(self) -> Pass:
        """Load the artifact from its file."""

    def memory(self) -> Memory:
        """Measure a process that loads the artifact and makes one pass."""


class LanguageModel:
    """Prefill and decode of a language model; each pass compares its logits with the oracle's."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._path, self._runtime = subject.artifact.path, runtime
        self._stopwatch = Stopwatch(subject)
        self.tokens = {"decode": self._stopwatch.decoded, "prefill": self._stopwatch.prompt}

    def load(self) -> Pass:
        """Load the artifact from its file."""
        session = Session.open(open_artifact(self._path), self._runtime)

        def run() -> Steps:
            timed = self._stopwatch.run(session, self._runtime)
            return {"decode": timed.decode, "prefill": timed.chunks}

        return run

    def memory(self) -> Memory:
        """Measure a process that loads the artifact and makes one pass."""
        return self._stopwatch.memory(self._runtime)


class OtherModel:
    """A call of each method of a model that is no language model; outputs are compared."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._calls = Calls(subject, runtime, MAX_PASSES)
        self.tokens: dict[str, int] = {}

    def load(self) -> Pass:
        """Load the artifact from its file."""
        call = self._calls.load()
        return lambda: {f"{name} call": [took] for name, took in call().items()}

    def memory(self) -> Memory:
        """Measure a process that loads the artifact and makes one pass."""
        return self._calls.memory()


def time_artifacts(
    base: Subject,
    head: Subject,
    runtime: str,
    goal: Goal | None = None,
    seconds: float = 60,
    progress: Callable[[str], None] | None = None,
) -> list[Timed]:
    """Compare the times and the peak memory of two artifacts on a runtime.

    All verdicts on times together are wrong with a probability of at most the goal's error. A load
    has a goal of at least `LOAD_GOAL`. `seconds` limit the times; memory takes as long as starting
    four processes or more.

    Raises WrongAnswerError when a timed run gives a wrong answer.
    """
    goal, say = goal or Goal(), progress or (lambda stage: None)
    make = LanguageModel if base.is_language_model and head.is_language_model else OtherModel
    sides = make(base, runtime), make(head, runtime)
    timed = Race(*sides, goal, seconds).run(say)
    say("measuring peak memory")
    return [*timed, compare_memory(*sides, goal)]


class Race:
    """Visits two artifacts in blocks until each metric has a verdict or the seconds are spent."""

    def __init__(self, base: Side, head: Side, goal: Goal, seconds: float) -> None:
        self._sides = {"base": base, "second base": base, "head": head}
        self._goal = goal
        self._seconds = seconds
        self._blocks: dict[str, list[Block]] = {}
        self._passes = MAX_PASSES
        self._kept: dict[str, Pass] = {}

    def run(self, say: Callable[[str], None]) -> list[Timed]:
        """Return a row for each metric."""
        start = time.monotonic()
        say("timing: warming up")
        self._warm_up()
        begun, count = time.monotonic(), 0
        while _reaches_next_look(count, time.monotonic() - begun, start + self._seconds):
            self._add_block(ORDERS[count % len(ORDERS)])
            count += 1
            if is_look(count):
                rows = self._rows()
                undecided = [row.name for row in rows if row.found.verdict == "inconclusive"]
                if not undecided:
                    return rows
                say(f"timing: {count} blocks, {' and '.join(undecided)} undecided")
        return self._rows()

    def _warm_up(self) -> None:
        """Load and run each side, which compiles; then choose how visits are made."""
        loads: list[float] = []
        passes: list[float] = []
        for side in (self._sides["base"], self._sides["head"]):
            for number in range(2):
                start = time.monotonic()
                run = side.load()
                if number:
                    loads.append(time.monotonic() - start)
                timed = [run() for _ in range(MIN_PASSES)]
                passes.append(sum(map(sum, _least(timed).values())) / 1000)
        visit = self._seconds / USUAL_BLOCKS / 4
        if min(loads) > visit / 2 and all(side.tokens for side in self._sides.values()):
            self._kept = {name: side.load() for name, side in self._sides.items()}
            loads = [0.0]
        count = int((visit - min(loads)) / min(passes))
        self._passes = min(max(count, MIN_PASSES), MAX_PASSES)

    def _add_block(self, order: Sequence[str]) -> None:
        """Make four visits, and keep their times as a block of each metric."""
        visits: dict[str, list[dict[str, float]]] = {}
        for name in order:
            visits.setdefault(name, []).append(self._visit(name))
        first, second = visits["base"][0], visits["second base"][0]
        third, fourth = visits["head"]
        for metric in first:
            block = Block((first[metric], second[metric]), (third[metric], fourth[metric]))
            self._blocks.setdefault(metric, []).append(block)

    def _visit(self, name: str) -> dict[str, float]:
        """Return the milliseconds of each metric, per token where it has tokens."""
        side = self._sides[name]
        values: dict[str, float] = {}
        with _no_garbage_collection():
            if name in self._kept:
                run = self._kept[name]
            else:
                run, values["load"] = milliseconds(side.load)
            passes = [run() for _ in range(self._passes)]
        for metric, steps in _least(passes).items():
            values[metric] = sum(steps) / side.tokens.get(metric, 1)
        return values

    def _rows(self) -> list[Timed]:
        """Compare what has been timed; the error is shared by the metrics."""
        rows = []
        for metric, blocks in self._blocks.items():
            goal = replace(self._goal, error=self._goal.error / len(self._blocks))
            if metric == "load":
                detect, tolerate = LOAD_GOAL
                goal = replace(
                    goal, detect=max(goal.detect, detect), tolerate=max(goal.tolerate, tolerate)
                )
            unit = "ms/token" if metric in self._sides["base"].tokens else "ms"
            base = median(time for block in blocks for time in block.base)
            head = median(time for block in blocks for time in block.head)
            rows.append(Timed(metric, unit, base, head, compare(blocks, goal)))
        return rows


def _reaches_next_look(blocks: int, took: float, end: float) -> bool:
    """Whether the blocks up to the next look will be made by `end`; `took` is the past ones'."""
    left = end - time.monotonic()
    if blocks < MIN_BLOCKS_OF_RATE:
        return left > 0 or not blocks
    past = blocks - FIRST_LOOK
    missing = -past if past < 0 else BLOCKS_PER_LOOK - past % BLOCKS_PER_LOOK
    return took / blocks * missing <= left


def _least(passes: Sequence[Steps]) -> dict[str, list[float]]:
    """Return the least time of each step over passes."""
    return {
        metric: [min(times) for times in zip(*(steps[metric] for steps in passes), strict=True)]
        for metric in passes[0]
    }


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not inside."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def compare_memory(base: Side, head: Side, goal: Goal) -> Timed:
    """Compare what the peak memory of a process grows by when it loads and runs an artifact.

    Peaks hardly scatter: the lowest and the highest ratio of any two samples are the interval, and
    those of two samples of base are the control. Samples are added until the verdict is clear.
    """
    samples: dict[str, list[float]] = {"base": [], "head": []}
    while True:
        for values, side in zip(samples.values(), (base, head), strict=True):
            memory = side.memory()
            values.append(float(memory.peak - memory.before))
        found = _memory_verdict(samples["base"], samples["head"], goal)
        enough = MAX_MEMORY_SAMPLES if found.verdict == "inconclusive" else MIN_MEMORY_SAMPLES
        if len(samples["base"]) >= enough:
            return Timed("memory", "bytes", min(samples["base"]), min(samples["head"]), found)


def _memory_verdict(base: list[float], head: list[float], goal: Goal) -> Comparison:
    low, high = min(head) / max(base), max(head) / min(base)
    ratio = Estimate(min(head) / min(base), low, high)
    control = Estimate(1.0, min(base) / max(base), max(base) / min(base))
    change = f"by {ratio.ratio - 1:+.1%}"
    if max(*base, *head) - min(*base, *head) <= ALLOCATOR_BYTES:
        verdict, reason = "same", "within 1 MiB"
    elif ratio.is_above(goal.tolerate):
        verdict, reason = "larger", change
    elif ratio.is_below(goal.tolerate):
        verdict, reason = "smaller", change
    elif ratio.is_within(goal.detect):
        verdict, reason = "same", f"within {goal.detect:.3g}"
    else:
        verdict, reason = "inconclusive", "the peaks scatter too much"
    return Comparison(verdict, reason, ratio, control, math.nan, len(base))
