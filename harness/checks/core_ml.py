"""Checks of Core ML itself, on a Mac: our executor against it, its times, and its placement.

`against-core-ml` compares what `mil:strict` and `mil:widen` give with what a runtime of Core ML
gives, on equal inputs. Its bound is the runtime's own tolerance: parity's for a language model, and
for another twice what fp16 costs, which is the difference between `strict` and `widen`.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from harness.checks.accuracy import (
    CALIBRATED_MULTIPLE,
    CEILINGS,
    PARTS,
    WIDE_TOLERANCE,
    Error,
    error,
    kl_divergence,
    measure,
    noise_floor,
    tolerances,
)
from harness.checks.agreement import badness, differences
from harness.checks.run import check
from harness.golden import run_steps
from harness.golden.inputs import all_inputs
from harness.results import Fact, Figure, Finding
from harness.runtimes import REFERENCE, get_runtime, isolated_runtime
from harness.shim import is_installed
from harness.subject import Subject, executable

OURS = ("mil:strict", REFERENCE)
_TIMES = ("cold load", "cached load", "first prediction")


@check(
    "against-core-ml",
    needs=(executable,),
    takes_runtime=True,
    kinds=("coreml", "executorch"),
    damaged="N01",
)
def check_against_core_ml(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare our executor with Core ML: logits and caches, or the outputs of each method.

    Off a Mac, where our executor is stood in for Core ML, the fact `core ml` says it.
    """
    is_itself = platform.system() == "Darwin" and not is_installed()
    yield Finding(
        "against-core-ml",
        "core ml",
        facts={"core ml": "itself" if is_itself else "our executor, stood in for it"},
    )
    find = _of_language_model if subject.is_language_model else _of_outputs
    yield from find(subject, runtime)


def _of_language_model(subject: Subject, runtime: str) -> Iterator[Finding]:
    native, allowed = measure(subject, runtime).trace, tolerances(subject, runtime)
    for ours in OURS:
        have = measure(subject, ours).trace
        found = differences(have, native)
        for part in PARTS:
            yield _finding(ours, part, found[part], allowed[part])
        same = have.logits.argmax(-1) == native.logits.argmax(-1)
        yield Finding(
            "against-core-ml",
            f"{ours}, tokens",
            comparisons=len(same),
            figures={
                f"{ours} top token agreement": Figure(
                    100 * float(same.double().mean()), "%", better="higher"
                ),
                f"{ours} KL divergence": Figure(kl_divergence(have.logits, native.logits), "nats"),
            },
        )


def _of_outputs(subject: Subject, runtime: str) -> Iterator[Finding]:
    core_ml = get_runtime(runtime)  # one process for all
    for method, sequences in all_inputs(subject.artifact, subject.seed).items():
        for sequence, steps in sequences.items():
            native = run_steps(subject.artifact, method, core_ml, steps)
            given = {ours: run_steps(subject.artifact, method, ours, steps) for ours in OURS}
            cost = _worst(given["mil:strict"], given[REFERENCE]).relative
            allowed = max(WIDE_TOLERANCE, min(CALIBRATED_MULTIPLE * cost, CEILINGS[subject.dtype]))
            for ours in OURS:
                place = f"{method} {sequence}"
                yield _finding(ours, place, _worst(given[ours], native), allowed)


def _worst(have: Sequence[Sequence[torch.Tensor]], want: Sequence[Sequence[torch.Tensor]]) -> Error:
    pairs = (pair for h, w in zip(have, want, strict=True) for pair in zip(h, w, strict=True))
    found = [error(h.reshape(w.shape), w) for h, w in pairs]
    return max(found, key=badness)


def _finding(ours: str, place: str, found: Error, allowed: float) -> Finding:
    figures = {
        f"{ours} {place} difference": Figure(
            found.relative, "", bound=allowed, floor=noise_floor(allowed)
        ),
        f"{ours} {place} SQNR": Figure(found.sqnr, "dB", better="higher"),
    }
    where = f"{ours}, {place}"
    return Finding("against-core-ml", where, comparisons=found.count, figures=figures, code="N21")


@check(
    "core-ml-profile",
    needs=(executable,),
    takes_runtime=True,
    kinds=("coreml",),
    damaged="N01",
)
def check_profile(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Record Core ML's own times and its placement of each operation, in a process of its own.

    `warm prediction` is the median of ten calls. A time without "(wrapper)" is by Core ML's clock.
    The results of the first call must be those of our executor.
    """
    profiler = isolated_runtime(runtime)
    for method, sequences in all_inputs(subject.artifact, subject.seed).items():
        inputs = next(iter(sequences.values()))[0]
        profile, results = profiler.profile(subject.artifact, method, inputs)
        (wanted,) = run_steps(subject.artifact, method, REFERENCE, [inputs])
        found = _worst([results], [wanted])
        yield Finding(
            "core-ml-profile",
            f"method '{method}'",
            comparisons=found.count,
            figures={
                f"{method} error": Figure(found.relative, bound=CEILINGS[subject.dtype]),
                **_times(method, profile),
                **_costs(method, profile["placement"]),
            },
            facts=_facts(method, profile),
            code="N22",
        )


def _times(method: str, profile: dict[str, Any]) -> dict[str, Figure]:
    warm = list(zip(*profile["warm prediction"], strict=True))
    core_ml, wrapper = warm
    rows = {name: profile[name] for name in _TIMES}
    rows["warm prediction"] = [None if None in core_ml else median(core_ml), median(wrapper)]
    figures = {f"{method} compile (wrapper)": Figure(profile["compile"], "ms")}
    for name, (own, call) in rows.items():
        if own is not None:
            figures[f"{method} {name}"] = Figure(own, "ms")
        figures[f"{method} {name} (wrapper)"] = Figure(call, "ms")
    return figures


def _costs(method: str, placement: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return Core ML's estimate of the work on each device, as a share of the method's packages."""
    costs: dict[str, float] = defaultdict(float)
    for row in placement:
        if row["cost"] is not None:
            costs[str(row["preferred"])] += row["cost"]
    return {f"{method} work on {name}": Figure(cost) for name, cost in sorted(costs.items())}


def _facts(method: str, profile: dict[str, Any]) -> dict[str, Fact]:
    """Return the units asked for and got, and where each operation goes, in program order.

    "linear*3 CPU; softmax Neural Engine" stands for runs of operations of one type on one device.
    """
    placement = profile["placement"]
    got = Counter(str(row["preferred"]) for row in placement if row["preferred"])
    runs: list[list[Any]] = []
    for row in placement:
        key = row["package"], row["operation"].rpartition(".")[2], row["preferred"] or "no plan"
        if runs and runs[-1][0] == key:
            runs[-1][1] += 1
        else:
            runs.append([key, 1])
    words = (f"{kind}{f'*{n}' if n > 1 else ''} {device}" for (_, kind, device), n in runs)
    return {
        f"{method} units asked for": profile["units"],
        f"{method} devices here": ", ".join(profile["devices"]) or "not told",
        f"{method} units got": ", ".join(f"{n} {c}" for n, c in sorted(got.items())) or "none told",
        f"{method} placement": "; ".join(words),
    }
