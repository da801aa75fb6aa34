"""Load, prefill and decode, timed, and checks that record them; a timed run checks its own answer.

The unit is ms per token, because trackers only know that smaller is better. The time of a runtime
in a child process excludes the start of the child and the passing of tensors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import torch

from harness.artifact import Artifact
from harness.checks import check, run_check, value_checks
from harness.checks.accuracy import error, prompt_length, sequence, tolerances
from harness.checks.applies import executable, language_model
from harness.errors import HarnessError
from harness.generate.session import Session
from harness.golden import Golden, golden_of_runtime
from harness.golden.inputs import all_inputs
from harness.results import Figure, Finding
from harness.runtimes import (
    BASELINE,
    Method,
    default_runtime,
    get_runtime,
    isolated_runtime,
    usable_runtimes,
)
from harness.runtimes.isolated import overhead_ns
from harness.subject import Subject

WARM_UP_ROUNDS = 1
CHECK_ROUNDS = 5

Result = TypeVar("Result")


class WrongAnswerError(HarnessError):
    """The logits of a timed run are not the model's: its time means nothing."""


@dataclass(frozen=True)
class Round:
    """One timed pass over a sequence: ms per token, and the logits [1 + steps, vocab] it gave."""

    prefill: float
    decode: list[float]
    logits: torch.Tensor


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a process that only loads an artifact and runs it one round.

    `before` is the peak before the load: Python, torch and the runtime's libraries.
    """

    before: int
    peak: int


def milliseconds(action: Callable[[], Result]) -> tuple[Result, float]:
    """Call; return the result, and the time it took in this process and in runtimes."""
    overhead, start = overhead_ns(), time.perf_counter_ns()
    result = action()
    took = time.perf_counter_ns() - start
    return result, (took - (overhead_ns() - overhead)) / 1e6


def load_times(path: str | Path, runtime: str, count: int) -> list[float]:
    """Return the milliseconds of `count` loads, from an unopened file, after a warm-up."""
    times = []
    for _ in range(WARM_UP_ROUNDS + count):
        times.append(milliseconds(lambda: Subject(path).session(runtime))[1])
        gc.collect()  # frees its weights and ends its child before the next load
    return times[WARM_UP_ROUNDS:]


def timed_round(session: Session, tokens: list[int], n_prompt: int) -> Round:
    """Reset, prefill a prompt in chunks, decode the rest token by token, teacher forced."""
    session.reset()
    first, prefill = milliseconds(partial(session.prefill, tokens[:n_prompt]))
    logits, decode = [first], []
    for token in tokens[n_prompt:]:
        row, took = milliseconds(partial(session.decode, token))
        logits.append(row)
        decode.append(took)
    return Round(prefill / n_prompt, decode, torch.stack(logits))


def bench(
    subject: Subject | str | Path,
    runtimes: Iterable[str] | None = None,
    rounds: int = 5,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Time load, prefill and decode, and measure memory, on each runtime in turn.

    Returns the figures by the runtime's name, each with its unit in its own name. Without names,
    the runtimes are this machine's default and the baseline, eager PyTorch in fp32. Of another
    model than a language model, loads and calls of each method are timed. Raises
    WrongAnswerError when a timed run's results are wrong, NotInstalledError for a runtime that
    cannot be used here.
    """
    if rounds < 1:
        raise HarnessError(f"rounds must be at least 1, not {rounds}")
    subject = Subject.of(subject)
    # The baseline is a language model in eager PyTorch; another model has none.
    usual = (default_runtime(), BASELINE) if subject.is_language_model else (default_runtime(),)
    names = usable_runtimes(runtimes or usual)
    if progress is not None:
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
            "load_ms": median(timed.loads),
            "call_ms": {name: median(calls) for name, calls in timed.calls.items()},
            "samples": {"call": rounds},
        }
    return figures


@dataclass(frozen=True)
class TimedCalls:
    """Milliseconds of each load, and of each call by method; `compared` values were right."""

    loads: list[float]
    calls: dict[str, list[float]]
    compared: int


def timed_calls(subject: Subject, runtime: str, rounds: int) -> TimedCalls:
    """Time loads and calls of an artifact of any model, after a warm-up.

    The outputs must be those of the subject's reference; without one, those of our executor in
    `double`. Raises WrongAnswerError when they are not.
    """
    artifact = subject.artifact
    if subject.golden is None:
        inputs = all_inputs(artifact, subject.seed)
        subject.golden = golden_of_runtime(artifact, "mil:double", inputs)
    case = run_check(value_checks()["outputs"], subject, runtime, suite="bench")
    if case.outcome != "pass":
        raise WrongAnswerError(f"{artifact.path} on {runtime}: {case.reason}")
    load = partial(CallTimer, artifact, runtime, subject.golden)
    timers = [milliseconds(load) for _ in range(WARM_UP_ROUNDS + rounds)][WARM_UP_ROUNDS:]
    called = [timers[0][0].round() for _ in range(WARM_UP_ROUNDS + rounds)][WARM_UP_ROUNDS:]
    calls = {name: [call[name] for call in called] for name in subject.golden}
    return TimedCalls([took for _, took in timers], calls, case.comparisons)


def _figures(loads: list[float], rounds: list[Round], memory: Memory) -> dict[str, Any]:
    decode = [step for timed in rounds for step in timed.decode]
    prefill = [timed.prefill for timed in rounds]
    return {
        "load_ms": median(loads),
        "prefill_ms_per_token": median(prefill),
        "decode_ms_per_token": median(decode),
        "decode_tokens_per_second": 1e3 / median(decode),
        "peak_memory_bytes": memory.peak,
        "memory_before_load_bytes": memory.before,
        "samples": {"prefill": len(prefill), "decode": len(decode)},
    }


class CallTimer:
    """Times a call of each method of an artifact of any model, on the largest golden inputs."""

    def __init__(self, artifact: Artifact, runtime: str, golden: Golden) -> None:
        self._calls: dict[str, tuple[Method, tuple[torch.Tensor, ...]]] = {}
        loaded = get_runtime(runtime)
        for name, sequences in golden.items():
            inputs = [calls[0].inputs for calls in sequences.values()]
            largest = max(inputs, key=lambda given: sum(tensor.numel() for tensor in given))
            self._calls[name] = loaded.load(artifact, name), largest

    def round(self) -> dict[str, float]:
        """Call each method once; return the milliseconds of each."""
        return {
            name: milliseconds(partial(method, *inputs))[1]
            for name, (method, inputs) in self._calls.items()
        }

    def seconds(self) -> float:
        """Call each method once; return the seconds of all."""
        return sum(self.round().values()) / 1000


class Stopwatch:
    """Measures one subject on any runtimes; the oracle's answer is computed once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._tokens = sequence(subject)
        if len(self._tokens) < 2:
            raise HarnessError(
                f"{subject.artifact.path}: a context of 1 token leaves nothing to decode, "
                "so there is nothing to time"
            )
        self._n_prompt = prompt_length(subject)
        logits, _, _ = subject.reference(torch.tensor(self._tokens))
        self._wanted = logits[self._n_prompt - 1 :]

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
        return self._checked_round(self._subject.session(runtime), runtime)

    def memory(self, runtime: str) -> Memory:
        """Run one round in a process of its own; raises WrongAnswerError as `round` does."""
        isolated = isolated_runtime(runtime)
        session = Session.open(self._subject.artifact, isolated)
        self._checked_round(session, runtime)
        return Memory(*isolated.memory(self._subject.artifact))

    @property
    def compared(self) -> int:
        """The number of logits that each round compares."""
        return self._wanted.numel()

    def _checked_round(self, session: Session, runtime: str) -> Round:
        timed = timed_round(session, self._tokens, self._n_prompt)
        found = error(timed.logits, self._wanted)
        allowed = max(tolerances(self._subject, runtime).values())
        if not found.relative <= allowed:
            raise WrongAnswerError(
                f"{self._subject.artifact.path} on {runtime}: the timed run's logits are off by "
                f"{found.relative:.3g} of the largest, {allowed:.3g} is allowed; its time is not "
                "a result"
            )
        return timed


@lru_cache(maxsize=1)
def _stopwatch(subject: Subject) -> Stopwatch:
    """Return the stopwatch of the last subject: the oracle is slow."""
    return Stopwatch(subject)


def _time(samples: list[float], unit: str) -> Figure:
    """Return the lowest quartile of samples, with the distance to the highest as its spread."""
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return Figure(low, unit, spread=high - low)


@check("latency", needs=(executable,), takes_runtime=True)
def check_latency(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Time loads, and prefills and decode steps or calls of each method, after a warm-up.

    The figures are for comparisons with another run, and other work on the machine only adds time:
    each is the lowest quartile of its samples.
    """
    if not subject.is_language_model:
        timed = timed_calls(subject, runtime, CHECK_ROUNDS)
        samples = {f"{name} call": calls for name, calls in timed.calls.items()}
        samples["load"] = timed.loads
        yield Finding(
            "latency",
            "",
            comparisons=timed.compared,
            figures={name: _time(took, "ms") for name, took in samples.items()},
            facts={"loads": CHECK_ROUNDS, "calls": CHECK_ROUNDS},
        )
        return
    stopwatch = _stopwatch(subject)
    rounds = stopwatch.rounds([runtime], CHECK_ROUNDS)[runtime]
    loads = load_times(subject.artifact.path, runtime, CHECK_ROUNDS)
    decode = [step for timed in rounds for step in timed.decode]
    yield Finding(
        "latency",
        "",
        comparisons=len(rounds) * stopwatch.compared,
        figures={
            "decode": _time(decode, "ms/token"),
            "prefill": _time([timed.prefill for timed in rounds], "ms/token"),
            "load": _time(loads, "ms"),
        },
        facts={"loads": len(loads), "prefills": len(rounds), "decode steps": len(decode)},
    )


@check("memory", needs=(language_model,), takes_runtime=True)
def check_memory(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Measure the peak memory of a process that loads the artifact and runs it one round."""
    stopwatch = _stopwatch(subject)
    yield Finding(
        "memory",
        "",
        comparisons=stopwatch.compared,
        figures={"peak": Figure(stopwatch.memory(runtime).peak, "bytes")},
    )
