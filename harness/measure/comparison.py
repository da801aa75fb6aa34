"""Two artifacts, or an artifact's runtimes, timed against each other; and their peak memory.

A block (see `statistics`) loads each artifact into two sessions, which then run one sequence a step
at a time, in turn and in changing order: steps at one moment meet the same machine, whatever else
it does. Blocks follow until each metric has a verdict or the seconds are spent.

Two loads of one artifact may differ in speed, for example by where their weights lie in memory.
Each block therefore loads anew. Where that takes longer than all else, the first block's sessions
are kept; the control then shows by how much two loads differ, and the load itself stays undecided.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from harness.artifact import open_artifact
from harness.errors import HarnessError
from harness.generate.session import Session
from harness.measure import Metric
from harness.measure.statistics import (
    Block,
    Comparison,
    Goal,
    compare,
    is_look,
    low_quartile,
    memory_verdict,
    reaches_next_look,
)
from harness.measure.timing import (
    Calls,
    Memory,
    Round,
    Stopwatch,
    controlled_garbage,
    load_times,
    milliseconds,
    steps_by_depth,
    timed_calls,
    timed_row,
)
from harness.measure.turns import MAX_PASSES, Pass, Steps, in_turn
from harness.results.figures import with_unit
from harness.runtimes import BASELINE, default_runtime, usable_runtimes
from harness.subject import Subject

# Of a block: see `in_turn`. Prefill has fewer steps than decode, so that a pass repeats it.
PASSES, PREFILLS = 3, 4
LOADS = 2  # after one that makes the process's memory grow
USUAL_BLOCKS = 14  # the blocks that should fit into the seconds
MIN_MEMORY_SAMPLES, MAX_MEMORY_SAMPLES = 2, 5

# The gate's word for a verdict; others are the same.
_VERDICTS = {
    "slower": "regression",
    "larger": "regression",
    "faster": "better",
    "smaller": "better",
}


@dataclass(frozen=True)
class Timed:
    """One metric of two artifacts: the median of each side's times, and the comparison."""

    name: str
    unit: str
    base: float
    head: float
    found: Comparison

    def metric(self, case: str) -> Metric:
        """Return it as a metric of the gate."""
        texts = with_unit(self.base, self.unit), with_unit(self.head, self.unit)
        verdict = _VERDICTS.get(self.found.verdict, self.found.verdict)
        is_said = verdict == self.found.verdict  # the gate's word is the same
        reason = self.found.reason if is_said else f"{self.found.verdict}: {self.found.reason}"
        numbers = self.found.numbers()
        return Metric(case, self.name, "figure", *texts, verdict, reason, numbers=numbers)


class Side(Protocol):
    """An artifact on a runtime; `tokens` are those of a pass, by which each metric is divided."""

    tokens: dict[str, int]

    def load(self) -> tuple[Pass, float]:
        """Load the artifact from its file; return what runs it, and the milliseconds."""

    def memory(self) -> Memory:
        """Measure a process that loads the artifact and makes one pass."""


class LanguageModel:
    """Prefill and decode of a language model; each pass compares its logits with the oracle's."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._path, self._runtime = subject.artifact.path, runtime
        self._stopwatch = Stopwatch(subject)
        prefilled = PREFILLS * self._stopwatch.prompt
        self.tokens = {"decode": self._stopwatch.decoded, "prefill": prefilled}

    def load(self) -> tuple[Pass, float]:
        """Load the artifact from its file; return what runs it, and the milliseconds."""
        session, took = milliseconds(self.open)

        def run() -> Steps:
            for last in range(PREFILLS - 1, -1, -1):
                yield from self._stopwatch.steps(session, self._runtime, decode=not last)

        return run, took

    def open(self) -> Session:
        """Open a session on the artifact's file."""
        return Session.open(open_artifact(self._path), self._runtime)

    def memory(self) -> Memory:
        """Measure a process that loads the artifact and makes one pass."""
        return self._stopwatch.memory(self._runtime)


class OtherModel:
    """A call of each method of a model that is not a language model; outputs are compared."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._calls = Calls(subject, runtime)
        self.tokens = {f"{method} call": 1 for method in self._calls.methods}

    def load(self) -> tuple[Pass, float]:
        """Load the artifact from its file; return what runs it, and the milliseconds."""
        call, took = milliseconds(self._calls.load)
        return lambda: ((f"{method} call", ms) for method, ms in call().items()), took

    def memory(self) -> Memory:
        """Measure a process that loads the artifact and makes one pass."""
        return self._calls.memory()


def time_artifacts(
    base: Subject,
    head: Subject,
    runtimes: tuple[str, str],
    goal: Goal | None = None,
    progress: Callable[[str], object] = lambda stage: None,
) -> list[Timed]:
    """Compare the times and the peak memory of two artifacts, each on a runtime.

    All verdicts on times together are wrong with a probability of at most the goal's error. A load
    has a goal of its own, `Goal.of_load`. Memory takes as long as starting four processes or more.
    Load and memory of two different runtimes are not compared.

    Raises WrongAnswerError when a timed run gives a wrong answer.
    """
    make = LanguageModel if base.is_language_model and head.is_language_model else OtherModel
    sides = make(base, runtimes[0]), make(head, runtimes[1])
    timed = Race(*sides, goal or Goal(), loads=runtimes[0] == runtimes[1]).run(progress)
    if runtimes[0] != runtimes[1]:
        return timed
    progress("measuring peak memory")
    return [*timed, compare_memory(*sides, goal or Goal())]


class Race:
    """Times two artifacts in blocks; without `loads`, it loads each twice before the first one."""

    def __init__(
        self,
        base: Side,
        head: Side,
        goal: Goal,
        clock: Callable[[], float] = time.monotonic,
        loads: bool = True,
    ) -> None:
        self._sides = {"base": base, "second base": base, "head": head, "second head": head}
        self._goal = goal
        self._clock = clock
        self._loads = loads
        metrics = [*base.tokens, "load"] if loads else base.tokens
        self._blocks: dict[str, list[Block]] = {metric: [] for metric in metrics}
        self._undecided = set(self._blocks)
        self._kept: dict[str, Pass] = {}

    @controlled_garbage()
    def run(self, say: Callable[[str], object]) -> list[Timed]:
        """Return a row for each metric."""
        start = self._clock()
        say("timing: warming up")
        self._time_block(0)  # compiles, which the loads of the next block do not
        if self._loads:
            self._kept.clear()
        end = (start if self._loads else self._clock()) + self._goal.seconds
        took: list[float] = []
        while reaches_next_look(took, end - self._clock()):
            begun, count = self._clock(), len(took) + 1
            for metric, block in self._time_block(count).items():
                self._blocks[metric].append(block)
            took.append(self._clock() - begun)
            say(f"timing: {count} blocks, {' and '.join(sorted(self._undecided))} undecided")
            if is_look(count):
                rows = self._rows()
                self._undecided = {r.name for r in rows if r.found.verdict == "inconclusive"}
                if not self._undecided or (self._kept and self._undecided == {"load"}):
                    return rows
        return self._rows()

    def _time_block(self, number: int) -> dict[str, Block]:
        """Load and run four sessions; return a block of each metric that is undecided.

        Sessions that were kept are run, and give no block of `load`.
        """
        sessions = dict(self._kept)
        loads: dict[str, dict[str, float]] = {}

        def load(name: str) -> Steps:
            sessions.pop(name, None)
            gc.collect()  # frees the session before, whose time this is not
            sessions[name], took = self._sides[name].load()
            yield "load", took

        if not sessions:
            loaders = {name: partial(load, name) for name in self._sides}
            loads = in_turn(loaders, number, 1)
            loading = len(loads) * min(times["load"] for times in loads.values()) / 1000
            spare = self._goal.seconds / USUAL_BLOCKS / 2
            if not self._loads or loading > spare:
                self._kept = sessions
            elif number and "load" in self._undecided and MAX_PASSES * LOADS * loading < spare:
                loads = in_turn(loaders, number, LOADS)
        # Of decided metrics one pass is left, which checks the answers.
        passes = PASSES if number and self._undecided - {"load"} else 1
        times = in_turn(sessions, number, passes)
        for name, side in self._sides.items():
            times[name] = {metric: times[name][metric] / n for metric, n in side.tokens.items()}
            times[name] |= loads.get(name, {})
        first, second, third, fourth = (times[name] for name in self._sides)
        return {
            metric: Block((first[metric], second[metric]), (third[metric], fourth[metric]))
            for metric in first.keys() & self._undecided
        }

    def _rows(self) -> list[Timed]:
        """Compare what has been timed; the metrics share the error."""
        rows = []
        goal = replace(self._goal, error=self._goal.error / len(self._blocks))
        for metric, blocks in self._blocks.items():
            found = compare(blocks, goal.of_load if metric == "load" else goal)
            base = median(time for block in blocks for time in block.base)
            head = median(time for block in blocks for time in block.head)
            unit = "ms/token" if metric in ("decode", "prefill") else "ms"
            rows.append(Timed(metric, unit, base, head, found))
        return rows


def compare_memory(base: Side, head: Side, goal: Goal) -> Timed:
    """Compare what the peak memory of a process grows by when it loads and runs an artifact.

    Peaks hardly scatter: the extreme ratios of any two samples are the interval, and those of two
    samples of base are the control. Two samples may say "same", any other verdict takes them all.
    """
    samples: tuple[list[float], list[float]] = ([], [])
    while True:
        for values, side in zip(samples, (base, head), strict=True):
            memory = side.memory()
            values.append(float(memory.peak - memory.before))
        found = memory_verdict(*samples, goal)
        enough = MIN_MEMORY_SAMPLES if found.verdict == "same" else MAX_MEMORY_SAMPLES
        if len(samples[0]) >= enough:
            return Timed("memory", "bytes", min(samples[0]), min(samples[1]), found)


def bench(
    subject: Subject | str | Path,
    runtimes: Iterable[str] | None = None,
    rounds: int = 5,
    progress: Callable[[str], object] = lambda stage: None,
) -> dict[str, dict[str, Any]]:
    """Time load, prefill and decode, and measure memory, on each runtime in turn.

    Returns the figures by the runtime's name, each with its unit in its own name. Without names,
    the runtimes are this machine's default and the baseline, eager PyTorch in fp32. Of another
    model than a language model, loads and calls of each method are timed. Raises WrongAnswerError
    when a run's results are wrong, NotInstalledError for a runtime that cannot be used here.
    """
    if rounds < 1:
        raise HarnessError(f"rounds must be at least 1, not {rounds}")
    subject = Subject.of(subject)
    # The baseline is a language model in eager PyTorch; another model has none.
    usual = (default_runtime(), BASELINE) if subject.is_language_model else (default_runtime(),)
    names = usable_runtimes(runtimes or usual)
    progress(f"timing {' and '.join(names)}, {rounds} rounds")
    if not subject.is_language_model:
        return _bench_calls(subject, names, rounds)
    stopwatch = Stopwatch(subject)
    timed = stopwatch.rounds(names, rounds)
    figures = {
        name: _figures(
            load_times(subject.artifact.path, name, rounds), timed[name], stopwatch.memory(name)
        )
        for name in names
    }
    base = figures.get(BASELINE, {}).get("decode_ms_per_token")
    for row in figures.values():
        speed = base and base / row["decode_ms_per_token"]
        row[f"decode_speed_over_{BASELINE.replace(':', '_')}"] = speed
    return figures


def _bench_calls(subject: Subject, runtimes: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    figures = {}
    for runtime in runtimes:
        timed = timed_calls(subject, runtime, rounds)
        figures[runtime] = {
            "load_ms": low_quartile(timed.loads),
            "call_ms": {name: low_quartile(calls) for name, calls in timed.calls.items()},
            "tests": [
                timed_row("load", "ms", timed.loads),
                *(timed_row(f"{name} call", "ms", calls) for name, calls in timed.calls.items()),
            ],
            **Calls(subject, runtime).memory().figures,
            "samples": {"call": rounds},
        }
    return figures


def _figures(loads: list[float], rounds: list[Round], memory: Memory) -> dict[str, Any]:
    decode = [step for timed in rounds for step in timed.decode]
    prefill = [timed.prefill for timed in rounds]
    return {
        "load_ms": low_quartile(loads),
        "prefill_ms_per_token": low_quartile(prefill),
        "decode_ms_per_token": low_quartile(decode),
        "decode_tokens_per_second": 1e3 / low_quartile(decode),
        "tests": [
            timed_row("load", "ms", loads),
            timed_row(f"pp{rounds[0].prompt}", "ms/token", prefill),
            *(
                timed_row(f"tg{n} @ d{d}", "ms/token", took)
                for d, n, took in steps_by_depth(rounds)
            ),
        ],
        **memory.figures,
        "samples": {"prefill": len(prefill), "decode": len(decode)},
    }
