"""Four sessions take their steps in turn, so that all of them meet the same machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from harness.measure.statistics import Floats

MIN_MS = 80.0  # of four actions together
SETTLED, MAX_PASSES = 0.05, 3  # see `in_turn`
# The order in which a block's sessions take turns: each is first as often as the others.
ORDERS = (
    ("base", "head", "second head", "second base"),
    ("head", "base", "second base", "second head"),
    ("second base", "second head", "head", "base"),
    ("second head", "second base", "base", "head"),
)

Steps = Iterator[tuple[str, float]]
Pass = Callable[[], Steps]
"""Runs something step by step and checks its results; yields each step's metric and its ms."""


def in_turn(actions: Mapping[str, Pass], number: int, passes: int) -> dict[str, dict[str, float]]:
    """Take passes of four actions, named as in `ORDERS`, a step of each in turn.

    Returns the milliseconds of each action's pass by metric. Several passes are repeated until they
    have taken `MIN_MS` and the last one has moved no time by `SETTLED`; for the latter, at most
    `MAX_PASSES` times as many are taken. `number` is that of the block: it decides who is first.
    """
    # By metric and action, a list of milliseconds for each pass.
    taken: dict[str, dict[str, list[list[float]]]] = {}
    times: dict[str, dict[str, float]] = {}
    spent, turn = 0.0, 0
    while True:
        for name, metric, took in _turns(actions, number + turn):
            rows = taken.setdefault(metric, {}).setdefault(name, [])
            if len(rows) == turn:
                rows.append([])
            rows[turn].append(took)
            spent += took
        turn += 1
        if passes > 1 and (turn < passes - 1 or spent < MIN_MS):
            continue
        before, times = times, _times_of(actions, taken)
        if turn >= passes and (passes == 1 or turn >= MAX_PASSES * passes or _same(before, times)):
            return times


def _times_of(
    names: Iterable[str], taken: Mapping[str, Mapping[str, list[list[float]]]]
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each action's pass by metric, of those of each pass's steps."""
    times: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric, by_name in taken.items():
        table = [by_name[name] for name in times]
        if len({len(row) for rows in table for row in rows}) > 1:  # steps of unequal size
            table = [[[sum(row)] for row in rows] for rows in table]
        for name, time in zip(times, shared_times(np.array(table)).tolist(), strict=True):
            times[name][metric] = time
    return times


def _same(
    before: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, float]]
) -> bool:
    return bool(before) and all(
        abs(time / before[name][metric] - 1) < SETTLED
        for name, times in now.items()
        for metric, time in times.items()
    )


def _turns(actions: Mapping[str, Pass], first: int) -> Iterator[tuple[str, str, float]]:
    """Take a pass of each action, a step of each in turn; yield its name, metric and ms."""
    running = {name: action() for name, action in actions.items()}
    orders = itertools.islice(itertools.cycle(ORDERS), first % len(ORDERS), None)
    while running:
        for name in next(orders):
            step = next(running[name], None) if name in running else None
            if step is None:
                running.pop(name, None)
            else:
                yield name, *step


def shared_times(times: Floats) -> Floats:
    """Return the time of each action's pass, of times [actions, passes, steps].

    Steps of several actions at one moment share the state of the machine. What an action differs
    from their median by, in the median of the passes, is therefore its own: other work that meets
    one step of one action in one pass moves neither. The medians themselves are the least of the
    passes.
    """
    logs = np.log(times)
    shared = np.median(logs, axis=0)
    own = np.median(logs - shared, axis=1)
    sums: Floats = np.exp(shared.min(0) + own).sum(1)
    return sums
