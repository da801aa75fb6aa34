"""The sizes of an artifact, and the gate on two: their parts, the right logits, their speed.

The gate times both in one session, in ABBA order; see `statistics`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.artifact.facts import artifact_facts
from harness.checks import Check, artifact_checks, check, run_check
from harness.diff import Difference, diff_artifacts
from harness.errors import HarnessError
from harness.measure import GateResult, Metric
from harness.measure.statistics import compare, sample_in_abba_order
from harness.measure.timing import Stopwatch, check_latency, check_memory
from harness.measure.verdicts import fact_margin, fact_text, fact_verdict, outcome_verdict
from harness.results import Case, Fact, Finding
from harness.runtimes import default_runtime, usable_runtimes
from harness.subject import Subject
from harness.text import clip

PAIRS = 12
_TELLING = ("option", "operation", "wiring", "weight")  # kinds of differences
_MAX_NOTES = 4
_MAX_TEXT = 120  # characters of a value in a message
_TIME_VERDICTS = {"slower": "regression", "faster": "better"}


def compare_artifacts(base: str | Path, head: str | Path, runtime: str | None = None) -> GateResult:
    """Compare two artifacts, .pte files or exported folders, on a runtime.

    Without a name, it is this machine's default.

    Raises NotInstalledError when the runtime cannot be used here, HarnessError for a bad file.
    """
    (runtime,) = usable_runtimes([runtime or default_runtime()])
    subjects = Subject(base), Subject(head)
    for path, subject in zip((base, head), subjects, strict=True):
        if subject.artifact.pte is None:
            raise HarnessError(f"{path}: only .pte files and exported folders can be compared")
    parity = tuple(_parity(subject, runtime) for subject in subjects)
    differences = diff_artifacts(*(subject.artifact for subject in subjects))
    metrics = [*_fact_metrics(*subjects), *constant_metrics(differences), _parity_metric(*parity)]
    if all(case.outcome == "pass" for case in parity):
        metrics.append(_time_metric(*subjects, runtime))
    return GateResult(tuple(metrics), tuple(difference_notes(differences)))


def _fact_metrics(base: Subject, head: Subject) -> Iterator[Metric]:
    ours, theirs = _facts(base), _facts(head)
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in theirs:
            text = "HEAD does not have it"
            yield Metric("artifact", name, "fact", fact_text(ours[name]), "", "regression", text)
            continue
        if name not in ours:
            yield Metric("artifact", name, "fact", "", fact_text(theirs[name]), "new")
            continue
        margin = fact_margin(name, ours[name], {})
        texts = fact_text(ours[name]), fact_text(theirs[name])
        verdict, reason = fact_verdict(ours[name], theirs[name], margin)
        yield Metric("artifact", name, "fact", *texts, verdict, reason)


def constant_metrics(differences: Sequence[Difference]) -> Iterator[Metric]:
    """Yield the constants that differ, save tables of floats: exporters round these differently."""
    for found in differences:
        base, head = _texts(found)
        if found.kind == "constant" and not (base + head).startswith("float"):
            name, reason = f"constant {found.what}", "a deterministic fact changed"
            yield Metric("artifact", name, "fact", base, head, "regression", reason)


def difference_notes(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield what changed in options, operations, wiring and weights: the first of it."""
    telling = [d for d in differences if d.kind in _TELLING and not d.what.startswith("number ")]
    for found in telling[:_MAX_NOTES]:
        base, head = (text or "(none)" for text in _texts(found))
        where = f"{found.where}: " if found.where else ""
        yield f"Changed: {where}{found.kind} {found.what}: BASE has {base}; HEAD has {head}"
    if len(telling) > _MAX_NOTES:
        yield f"Changed: {len(telling) - _MAX_NOTES} more; `harness diff` shows all"


def _texts(found: Difference) -> tuple[str, str]:
    """Return both sides of a difference as short texts, "" for a side that has nothing."""
    base, head = ("" if side is None else clip(str(side), _MAX_TEXT) for side in (found.a, found.b))
    return base, head


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
        facts=_facts(subject),
    )
    for number, package in enumerate(facts.packages):
        yield Finding(
            "sizes",
            f"package {number}",
            ok=package.sharing.stored <= package.size,
            message=f"{package.size} bytes, and weights of {package.sharing.stored} bytes",
            comparisons=1,
            facts={
                f"package {number} bytes": package.size,
                f"package {number} used weight bytes": package.sharing.used,
            },
        )


MEASUREMENTS: tuple[Check[Subject], ...] = (check_sizes, check_latency, check_memory)
"""The checks that record sizes, times and memory."""


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


def _parity(subject: Subject, runtime: str) -> Case:
    """Return the case of parity; raise HarnessError when nothing could be compared.

    Two artifacts that cannot be executed would otherwise be equally bad, and pass.
    """
    case = run_check(artifact_checks()["parity"], subject, runtime, suite="gate")
    if case.outcome not in ("pass", "fail"):
        raise HarnessError(case.reason)
    return case


def _parity_metric(base: Case, head: Case) -> Metric:
    verdict, reason = outcome_verdict(base, head)
    return Metric("artifact", "parity", "outcome", base.outcome, head.outcome, verdict, reason)


def _time_metric(base: Subject, head: Subject, runtime: str) -> Metric:
    """Time decoding of both; each round checks its own logits."""
    base_round, head_round = (_timed(subject, runtime) for subject in (base, head))
    samples = sample_in_abba_order(base_round, head_round, PAIRS)
    found = compare(samples.pairs, samples.control)
    ours, theirs = (
        f"{statistics.median(pair[side] for pair in samples.pairs) * 1000:.3g} ms/token"
        for side in (0, 1)
    )
    verdict = _TIME_VERDICTS.get(found.verdict, found.verdict)
    reason = f"{found.verdict}: {found.reason}"
    return Metric("artifact", "decode", "figure", ours, theirs, verdict, reason)


def _timed(subject: Subject, runtime: str) -> Callable[[], float]:
    stopwatch = Stopwatch(subject)

    def run() -> float:
        steps = stopwatch.round(runtime).decode
        return sum(steps) / len(steps) / 1000

    return run
