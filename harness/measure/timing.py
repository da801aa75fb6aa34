"""Load, prefill and decode, or calls, timed; a timed run checks its own answer. Checks record them.

The time of a runtime in a child process excludes the start of the child and the passing of tensors.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import numpy as np
import torch

from harness.artifact import Artifact, open_artifact
from harness.checks import run_check, value_checks
from harness.checks.accuracy import error, prompt_length, sequence, sequence_passage, tolerances
from harness.errors import HarnessError
from harness.generate.session import PhaseName, Session
from harness.golden import distance, golden_of_runtime
from harness.golden.inputs import all_inputs
from harness.runtimes import REFERENCE, Runtime, get_runtime, isolated_runtime
from harness.runtimes.isolated import overhead_ns
from harness.subject import Subject

WARM_UP_ROUNDS = 1

# Between two calls with the same inputs, relative to the largest output: threads add in any order,
# which may move the last bits of a result in FLOAT16.
REPEATED_TOLERANCE = 2.0**-9

DEPTHS = 4  # at which decode is timed apart, if there are at least two steps of each

Result = TypeVar("Result")
Times = list[float]
Tensors = tuple[torch.Tensor, ...]


class WrongAnswerError(HarnessError):
    """The logits of a timed run are not the model's: its time means nothing."""


@dataclass(frozen=True)
class Round:
    """One timed pass over a sequence: the milliseconds of each call.

    `chunks` are the calls that prefill `prompt` tokens, `decode` those of one token each.
    """

    chunks: list[float]
    prompt: int
    decode: list[float]

    @property
    def prefill(self) -> float:
        """Milliseconds of prefill per token."""
        return sum(self.chunks) / self.prompt


def steps_by_depth(rounds: Sequence[Round], parts: int = DEPTHS) -> list[tuple[int, int, Times]]:
    """Return (depth, steps, milliseconds of all rounds) of up to `parts` parts of the decoding.

    A depth is the number of tokens before the first step of a part, which has two steps or more;
    fewer steps than twice the parts are one part.
    """
    steps = np.array([timed.decode for timed in rounds])  # [rounds, steps]
    count = steps.shape[1]
    pieces = np.array_split(np.arange(count), parts if count >= 2 * parts else 1)
    prompt = rounds[0].prompt
    return [(prompt + int(p[0]), len(p), steps[:, p].ravel().tolist()) for p in pieces]


def timed_row(name: str, unit: str, samples: Sequence[float]) -> dict[str, Any]:
    """Return a row of the table of `harness bench`, by llama-bench's name; quartiles enclose it."""
    several = [*samples] if len(samples) > 1 else 2 * [*samples]
    low, middle, high = quantiles(several, n=4, method="inclusive")
    row = {"test": name, "unit": unit, "median": middle, "quartiles": [low, high]}
    speed = {"tokens_per_second": 1e3 / middle} if unit == "ms/token" else {}
    return row | speed | {"samples": len(samples)}


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a process that only loads an artifact and runs it one round.

    `before` is the peak before the load: Python, torch and the runtime's libraries.
    """

    before: int
    peak: int

    @property
    def figures(self) -> dict[str, int]:
        """Both, by the names that `harness bench --json` has for them."""
        return {"peak_memory_bytes": self.peak, "memory_before_load_bytes": self.before}


def milliseconds(action: Callable[[], Result]) -> tuple[Result, float]:
    """Call; return the result, and the time it took in this process and in runtimes."""
    overhead, start = overhead_ns(), time.perf_counter_ns()
    result = action()
    took = time.perf_counter_ns() - start
    return result, (took - (overhead_ns() - overhead)) / 1e6


@contextmanager
def controlled_garbage() -> Iterator[None]:
    """Collect garbage only where asked to, and only of what is made inside, which is quick."""
    was_enabled, is_outermost = gc.isenabled(), not gc.get_freeze_count()
    gc.disable()
    if is_outermost:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if is_outermost:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def load_times(path: str | Path, runtime: str, count: int) -> list[float]:
    """Return the milliseconds of `count` loads, from an unopened file, after a warm-up."""
    times = []
    for _ in range(WARM_UP_ROUNDS + count):
        times.append(milliseconds(lambda: Subject(path).session(runtime))[1])
        gc.collect()  # frees its weights and ends its child before the next load
    return times[WARM_UP_ROUNDS:]


def timed_steps(
    session: Session, tokens: list[int], n_prompt: int
) -> Iterator[tuple[PhaseName, float, torch.Tensor]]:
    """Reset, prefill a prompt in chunks, decode the rest token by token, teacher forced.

    Yields each call's phase, its milliseconds, and the last row of its logits, [vocab].
    """
    session.reset()
    while (start := session.position) < n_prompt:
        # Tokens beyond the end of the caches are fed again, and take room from the next chunk.
        tail = max(0, start - session.layout.cache_len)
        chunk = tokens[start : min(start + session.layout.prefill.input_len - tail, n_prompt)]
        rows, took = milliseconds(partial(session.feed, chunk, "prefill"))
        yield "prefill", took, rows[-1]
    for token in tokens[n_prompt:]:
        row, took = milliseconds(partial(session.decode, token))
        yield "decode", took, row


@dataclass(frozen=True)
class TimedCalls:
    """Milliseconds of each load, and of each call by method; `compared` values were right."""

    loads: list[float]
    calls: dict[str, list[float]]
    compared: int


def timed_calls(subject: Subject, runtime: str, rounds: int) -> TimedCalls:
    """Time loads and calls of an artifact of any model, after a warm-up.

    Raises WrongAnswerError when outputs are wrong; see `Calls`.
    """
    timed = Calls(subject, runtime)
    loads = [milliseconds(timed.load) for _ in range(WARM_UP_ROUNDS + rounds)][WARM_UP_ROUNDS:]
    call = loads[0][0]
    called = [call() for _ in range(WARM_UP_ROUNDS + rounds)][WARM_UP_ROUNDS:]
    calls = {name: [took[name] for took in called] for name in called[0]}
    return TimedCalls([took for _, took in loads], calls, timed.compared)


class Calls:
    """Times calls of each method of an artifact of any model, on its largest golden inputs.

    The outputs must be those of the subject's reference; without one, those of our executor in
    `double`. A timed call must repeat those of the same call after another load: states go on.
    Raises WrongAnswerError when they are others.
    """

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._path, self._runtime = subject.artifact.path, runtime
        if subject.golden is None:
            inputs = all_inputs(subject.artifact, subject.seed)
            subject.golden = golden_of_runtime(subject.artifact, "mil:double", inputs)
        case = run_check(value_checks()["outputs"], subject, runtime, suite="bench")
        if case.outcome != "pass":
            raise WrongAnswerError(f"{self._path} on {runtime}: {case.reason}")
        self.compared = case.comparisons
        self._inputs = {
            name: max((c[0].inputs for c in calls.values()), key=lambda g: sum(map(torch.numel, g)))
            for name, calls in subject.golden.items()
        }
        self.methods = list(self._inputs)
        self._wanted: dict[str, list[Tensors]] = {name: [] for name in self._inputs}
        load = get_runtime(runtime).load
        self._others = {name: load(subject.artifact, name) for name in self.methods}

    def load(self) -> Callable[[], dict[str, float]]:
        """Load all methods; return a function that calls each once and gives the milliseconds."""
        return self._load(get_runtime(self._runtime), open_artifact(self._path))

    def memory(self) -> Memory:
        """Load all methods and call each once in a process of its own."""
        runtime, artifact = isolated_runtime(self._runtime), open_artifact(self._path)
        self._load(runtime, artifact)()
        return Memory(*runtime.memory(artifact))

    def _load(self, runtime: Runtime, artifact: Artifact) -> Callable[[], dict[str, float]]:
        methods = {name: runtime.load(artifact, name) for name in self._inputs}
        number = itertools.count()

        def call() -> dict[str, float]:
            step, took = next(number), {}
            for name, method in methods.items():
                outputs, took[name] = milliseconds(partial(method, *self._inputs[name]))
                self._require_equal(outputs, self._expected(name, step), name)
            return took

        return call

    def _expected(self, method: str, step: int) -> Tensors:
        """Return what the other load gives at a step; equal outputs are kept once."""
        wanted = self._wanted[method]
        while len(wanted) <= step:
            found = tuple(t.clone() for t in self._others[method](*self._inputs[method]))
            is_old = wanted and all(map(torch.equal, found, wanted[-1]))
            wanted.append(wanted[-1] if is_old else found)
        return wanted[step]

    def _require_equal(self, given: Tensors, wanted: Tensors, method: str) -> None:
        for output, expected in zip(given, wanted, strict=True):
            if not distance(output, expected) <= REPEATED_TOLERANCE:
                raise WrongAnswerError(
                    f"{self._path} on {self._runtime}: a timed call of method '{method}' gives "
                    f"other outputs than the call that was checked; its time is not a result"
                )


class Stopwatch:
    """Measures one subject on any runtimes; the oracle's answer is computed once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._tokens = sequence(subject)
        if len(self._tokens) < 2:
            raise HarnessError(
                f"{subject.artifact.path}: a context of 1 token leaves nothing to decode"
            )
        self._n_prompt = prompt_length(subject)
        found = subject.computed(sequence_passage(subject, REFERENCE))
        self._wanted = found.logits(range(self._n_prompt - 1, len(self._tokens)))

    def rounds(self, runtimes: list[str], count: int) -> dict[str, list[Round]]:
        """Time `count` rounds on each runtime, interleaved, after a warm-up."""
        rounds: dict[str, list[Round]] = {runtime: [] for runtime in runtimes}
        for number in range(WARM_UP_ROUNDS + count):
            for runtime in runtimes:
                timed = self.round(runtime)
                if number >= WARM_UP_ROUNDS:
                    rounds[runtime].append(timed)
        return rounds

    def round(self, runtime: str) -> Round:
        """Time one round.

        Raises WrongAnswerError when the runtime's logits are off by more than parity allows.
        """
        return self.run(self._subject.session(runtime), runtime)

    def memory(self, runtime: str) -> Memory:
        """Run one round in a process of its own; raises WrongAnswerError as `round` does."""
        isolated = isolated_runtime(runtime)
        session = Session.open(self._subject.artifact, isolated)
        self.run(session, runtime)
        return Memory(*isolated.memory(self._subject.artifact))

    @property
    def prompt(self) -> int:
        """The number of tokens that a round prefills."""
        return self._n_prompt

    @property
    def decoded(self) -> int:
        """The number of tokens that a round decodes."""
        return len(self._tokens) - self._n_prompt

    @property
    def compared(self) -> int:
        """The number of logits that each round compares."""
        return self._wanted.numel()

    def run(self, session: Session, runtime: str) -> Round:
        """Time one round of a session that `runtime` executes; raises what `round` raises."""
        timed: dict[str, list[float]] = {"prefill": [], "decode": []}
        for phase, took in self.steps(session, runtime):
            timed[phase].append(took)
        return Round(timed["prefill"], self._n_prompt, timed["decode"])

    def steps(
        self, session: Session, runtime: str, decode: bool = True
    ) -> Iterator[tuple[PhaseName, float]]:
        """Yield the phase and the milliseconds of each call of a round, or of its prefill alone.

        The last step is followed by the comparison; raises what `round` raises.
        """
        end = None if decode else self._n_prompt
        logits: dict[PhaseName, list[torch.Tensor]] = {"prefill": [], "decode": []}
        for phase, took, row in timed_steps(session, self._tokens[:end], self._n_prompt):
            logits[phase].append(row)
            yield phase, took
        given = torch.stack([logits["prefill"][-1], *logits["decode"]])
        found = error(given, self._wanted[: len(given)])
        allowed = max(tolerances(self._subject, runtime).values())
        if not found.relative <= allowed:
            raise WrongAnswerError(
                f"{self._subject.artifact.path} on {runtime}: the timed run's logits are off by "
                f"{found.relative:.3g} of the largest, {allowed:.3g} is allowed; its time is not "
                "a result"
            )
