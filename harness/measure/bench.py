"""The times and the memory of one artifact: for `harness bench`, and checks that record them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from harness.checks import check
from harness.checks.applies import executable, language_model
from harness.errors import HarnessError
from harness.measure.timing import Memory, Round, Stopwatch, load_times, timed_calls
from harness.results import Figure, Finding
from harness.runtimes import BASELINE, default_runtime, usable_runtimes
from harness.subject import Subject

CHECK_ROUNDS = 5


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
