"""What `harness check --measure` records of an artifact: its sizes, its times and its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from harness.artifact.facts import artifact_facts
from harness.checks import Check, check
from harness.measure.statistics import low_quartile
from harness.measure.timing import (
    Calls,
    Round,
    Stopwatch,
    load_times,
    steps_by_depth,
    timed_calls,
)
from harness.results import Fact, Figure, Finding
from harness.subject import Subject, executable

CHECK_ROUNDS = 5


@check("sizes")
def check_sizes(subject: Subject) -> Iterator[Finding]:
    """Record sizes, interface and operations; the whole must be as large as its parts."""
    facts = artifact_facts(subject.artifact)
    sizes = [package.size for package in facts.packages]
    yield Finding(
        "sizes",
        "artifact",
        ok=sum(sizes) <= facts.size,
        message=f"{facts.size} bytes, and packages of {sum(sizes)} bytes",
        comparisons=1,
        code="S09",
        facts=_facts(subject),
    )
    for number, package in enumerate(facts.packages):
        yield Finding(
            "sizes",
            f"package {number}",
            ok=package.sharing.stored <= package.size,
            message=f"{package.size} bytes, and weights of {package.sharing.stored} bytes",
            comparisons=1,
            code="S09",
            facts={
                f"package {number} bytes": package.size,
                f"package {number} used weight bytes": package.sharing.used,
            },
        )


def _facts(subject: Subject) -> dict[str, Fact]:
    """Return the facts that a change of the exporter must not change unseen."""
    facts = artifact_facts(subject.artifact)
    found: dict[str, Fact] = {"pte bytes": facts.size, "packages": len(facts.packages)}
    for method in facts.methods:
        for kind, tensors in (("inputs", method.inputs), ("outputs", method.outputs)):
            shapes = [f"{t.dtype}{list(t.shape)}" for t in tensors]
            found[f"{method.name} {kind}"] = " ".join(shapes)
    for number, package in enumerate(facts.packages):
        found[f"package {number} weight bytes"] = package.sharing.stored
        for function in package.functions:
            name = f"package {number} {function.name} operations"
            found[name] = sum(function.operations.values())
    return found


@lru_cache(maxsize=1)
def _stopwatch(subject: Subject) -> Stopwatch:
    """Return the stopwatch of the last subject: the oracle is slow."""
    return Stopwatch(subject)


def _time(samples: list[float], unit: str) -> Figure:
    """Return the low quartile of samples, with the distance to the high one as its spread."""
    low = low_quartile(samples)
    return Figure(low, unit, spread=float(np.quantile(samples, 0.75)) - low)


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
            **_by_depth(rounds),
        },
        facts={"loads": len(loads), "prefills": len(rounds), "decode steps": len(decode)},
    )


def _by_depth(rounds: Sequence[Round]) -> dict[str, Figure]:
    """Return the times of decode steps by the tokens before the middle of each part of them."""
    parts = steps_by_depth(rounds)
    return {
        f"decode at {depth + steps // 2} tokens": _time(samples, "ms/token")
        for depth, steps, samples in (parts if len(parts) > 1 else ())
    }


@check("memory", needs=(executable,), takes_runtime=True)
def check_memory(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Measure the peak memory of a process that loads the artifact and runs or calls it once."""
    if subject.is_language_model:
        stopwatch = _stopwatch(subject)
        compared, memory = stopwatch.compared, stopwatch.memory(runtime)
    else:
        calls = Calls(subject, runtime)
        compared, memory = calls.compared, calls.memory()
    figures = {"peak": Figure(memory.peak, "bytes")}
    yield Finding("memory", "", comparisons=compared, figures=figures)


MEASUREMENTS: tuple[Check[Subject], ...] = (check_sizes, check_latency, check_memory)
"""The checks that record sizes, times and memory."""
