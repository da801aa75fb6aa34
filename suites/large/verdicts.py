"""How often the gate's timing is right: `python -m harness.suites.large.verdicts simulate|measure`.

`simulate` runs the gate's own `Race` on simulated artifacts, on machines of several noise levels,
and prints the table of CONTRIBUTING.md. `measure` times an artifact against itself on this machine,
then against a copy that waits 3 % longer in each call: its verdicts are known, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from harness.generate.session import PhaseName, Session
from harness.measure.comparison import LanguageModel, Race
from harness.measure.statistics import Goal
from harness.measure.timing import Memory, controlled_garbage
from harness.measure.turns import Pass, Steps
from harness.runtimes import default_runtime
from harness.subject import Subject

# The times of `tiny`, in fewer steps. A load has steps, too, but they are not timed one by one.
STEPS, STEP_MS, LOAD_MS = 8, 2.5, 60.0
BURST = 32  # steps that a burst of other work lasts on average
DRAWN = 2048  # steps of which the random numbers are drawn at once


@dataclass(frozen=True)
class Machine:
    """A noise level; all are shares.

    `jitter` is the deviation of a step, `load` that of a session's speed from load to load, `drift`
    that of the machine's speed from step to step. `burst` is the share of the time in which other
    work slows every step down, up to four times; `tail` that of steps with an outlier of a
    Pareto distribution without a variance.
    """

    name: str
    jitter: float
    load: float
    drift: float
    burst: float
    tail: float


MACHINES = (
    Machine("quiet", jitter=0.01, load=0.003, drift=0.001, burst=0.02, tail=0.005),
    Machine("shared", jitter=0.02, load=0.005, drift=0.003, burst=0.3, tail=0.02),
    Machine("busy", jitter=0.03, load=0.007, drift=0.005, burst=0.6, tail=0.05),
    Machine("overloaded", jitter=0.05, load=0.015, drift=0.01, burst=0.85, tail=0.1),
)
EFFECTS = (0.0, 0.01, 0.03)


class World:
    """A machine while it runs: its clock in seconds, its speed, and whether other work runs."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.random = np.random.default_rng(seed)
        self.seconds = 0.0
        self._speed = 1.0
        self._slowdown = 1.0
        self._drawn = self._draw()

    def clock(self) -> float:
        """Return the simulated seconds since the start."""
        return self.seconds

    def spend(self, ideal_ms: float) -> float:
        """Return the milliseconds that a step takes, and let them pass."""
        step, slowdown, drift, chance = next(self._drawn)
        self._speed *= drift
        # A burst takes its share of the time, and slows all of its steps down alike.
        burst, end = self.machine.burst, 1 / BURST
        if self._slowdown == 1 and chance < end * burst / (1 - burst):
            self._slowdown = slowdown
        elif chance < end:
            self._slowdown = 1.0
        took = ideal_ms * self._speed * step * self._slowdown
        self.seconds += took / 1000
        return took

    def _draw(self) -> Iterator[tuple[float, float, float, float]]:
        """Yield the factor of a step, that of a burst, the drift, and a chance."""
        machine, random = self.machine, self.random
        while True:
            steps = np.exp(np.abs(random.normal(0, machine.jitter, DRAWN)))
            outliers = random.random(DRAWN) < machine.tail
            steps *= 1 + outliers * random.pareto(1.5, DRAWN)
            bursts = random.uniform(1, 4, DRAWN)
            drift = np.exp(random.normal(0, machine.drift, DRAWN))
            chances = random.random(DRAWN)
            yield from zip(
                steps.tolist(), bursts.tolist(), drift.tolist(), chances.tolist(), strict=True
            )


class SimulatedModel:
    """An artifact that is slower than the usual one by `effect`."""

    def __init__(self, world: World, effect: float) -> None:
        self.tokens = {"decode": STEPS}
        self._world, self._effect = world, effect

    def load(self) -> tuple[Pass, float]:
        """Draw the speed of a session."""
        world = self._world
        speed = (1 + self._effect) * float(np.exp(world.random.normal(0, world.machine.load)))

        def run() -> Steps:
            for _ in range(STEPS):
                yield "decode", world.spend(STEP_MS * speed)

        return run, sum(world.spend(LOAD_MS / STEPS * speed) for _ in range(STEPS))

    def memory(self) -> Memory:
        """Return the memory of no process."""
        return Memory(0, 0)


def simulate(runs: int) -> str:
    """Return the table of the verdicts on decode and load."""
    rows = []
    for machine in MACHINES:
        for effect in EFFECTS:
            verdicts: dict[str, Counter[str]] = {"decode": Counter(), "load": Counter()}
            blocks = []
            for seed in range(runs):
                world = World(machine, seed)
                sides = SimulatedModel(world, 0), SimulatedModel(world, effect)
                for row in Race(*sides, Goal(), world.clock).run(lambda stage: None):
                    verdicts[row.name][row.found.verdict] += 1
                    blocks += [row.found.blocks] if row.name == "decode" else []
            shares = [
                f"{100 * verdicts[metric][verdict] / runs:.2f}"
                for metric in verdicts
                for verdict in ("slower", "same", "faster", "inconclusive")
            ]
            rows.append((machine.name, f"{effect:+.0%}", *shares, statistics.median(blocks)))
            print(" ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
    names = ("slower %", "same %", "faster %", "undecided %")
    heads = ("machine", "head", *names, *(f"load {name}" for name in names), "blocks")
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


class SlowModel(LanguageModel):
    """A language model whose load and calls take longer by a share: it waits, busily."""

    def __init__(self, subject: Subject, runtime: str, share: float) -> None:
        super().__init__(subject, runtime)
        self._share = share

    def open(self) -> Session:
        """Open a session that waits in each call."""
        with self._waiting():
            session = super().open()
        feed = session.feed

        def slow_feed(tokens: Sequence[int], phase: PhaseName) -> torch.Tensor:
            with self._waiting():
                return feed(tokens, phase)

        session.feed = slow_feed  # type: ignore[method-assign]
        return session

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        end = start + (time.perf_counter() - start) * (1 + self._share)
        while time.perf_counter() < end:
            pass


@contextmanager
def _other_work(processes: int) -> Iterator[None]:
    """Keep that many processes computing meanwhile."""
    command = [sys.executable, "-c", "while True: sum(range(10000))"]
    with ExitStack() as stack:
        for _ in range(processes):
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        yield


def measure(args: argparse.Namespace) -> str:
    """Time a file against itself, and against itself made slower, in turn; return the table.

    The log gets a JSON line for each run, which survives an interrupt.
    """
    subject, runtime, share = Subject(args.file), args.runtime, args.share
    base = LanguageModel(subject, runtime)
    heads = {0.0: LanguageModel(subject, runtime), share: SlowModel(subject, runtime, share)}
    verdicts: dict[tuple[str, float], Counter[str]] = {}
    seconds: dict[float, list[float]] = {effect: [] for effect in heads}
    with _other_work(args.busy):
        for _ in range(args.runs):
            for effect, head in heads.items():
                start = time.monotonic()
                rows = Race(base, head, Goal(seconds=args.seconds)).run(lambda stage: None)
                seconds[effect].append(time.monotonic() - start)
                record: dict[str, object] = {"effect": effect, "seconds": seconds[effect][-1]}
                for row in rows:
                    verdict = row.found.verdict
                    verdicts.setdefault((row.name, effect), Counter())[verdict] += 1
                    record[row.name] = {"verdict": verdict} | row.found.numbers()
                with args.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    table = [
        (
            name,
            f"{effect:+.0%}",
            *(counts[v] for v in ("slower", "same", "faster", "inconclusive")),
            round(statistics.median(seconds[effect])),
            round(max(seconds[effect])),
        )
        for (name, effect), counts in sorted(verdicts.items())
    ]
    titles = ("metric", "head", "slower", "same", "faster", "undecided", "median s", "longest s")
    return tabulate(table, titles, tablefmt="github")


def main(words: Sequence[str] | None = None) -> int:
    """Run one of the two; return 0."""
    parser = argparse.ArgumentParser(prog="python -m harness.suites.large.verdicts")
    kinds = parser.add_subparsers(dest="kind", required=True)
    simulated = kinds.add_parser("simulate", help="on simulated machines")
    simulated.add_argument("--runs", type=int, default=2000, help="for each row (default: 2000)")
    measured = kinds.add_parser("measure", help="on this machine")
    measured.add_argument("file", type=Path, help="an artifact of a language model")
    measured.add_argument("--runtime", default=default_runtime())
    measured.add_argument("--runs", type=int, default=40, help="of each kind (default: 40)")
    measured.add_argument("--share", type=float, default=0.03, help="how much slower (0.03)")
    measured.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile")
    measured.add_argument("--seconds", type=float, default=60, help="of a run (default: 60)")
    measured.add_argument("--log", type=Path, default=Path("verdicts.jsonl"), help="a line per run")
    args = parser.parse_args(words)
    if args.kind == "simulate":
        with controlled_garbage():  # or each block's collection visits all of torch
            print(simulate(args.runs))
    else:
        print(measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
