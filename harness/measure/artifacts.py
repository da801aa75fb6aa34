"""The sizes of an artifact, and the gate on two: their parts, the right logits, their speed.

The gate times both in one session; see `comparison`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.artifact.facts import artifact_facts
from harness.checks import Check, artifact_checks, check, run_check, value_checks
from harness.diff import Difference, diff_artifacts
from harness.errors import HarnessError
from harness.golden import golden_of_runtime
from harness.golden.inputs import all_inputs
from harness.measure import GateResult, Metric
from harness.measure.comparison import time_artifacts
from harness.measure.timing import check_latency, check_memory
from harness.measure.verdicts import fact_margin, fact_text, fact_verdict, outcome_verdict
from harness.results import Case, Fact, Finding
from harness.runtimes import default_runtime, usable_runtimes
from harness.subject import Subject
from harness.text import clip

_TELLING = ("option", "operation", "wiring", "weight")  # kinds of differences
_MAX_NOTES = 4
_MAX_TEXT = 120  # characters of a value in a message


def compare_artifacts(
    base: Subject | str | Path, head: Subject | str | Path, runtime: str | None = None
) -> GateResult:
    """Compare two artifacts on a runtime, without a name on this machine's default.

    Language models are held against their oracle. For another model, what BASE gives in `double`
    is what HEAD must give.

    Raises NotInstalledError when the runtime cannot be used here, HarnessError for a bad file.
    """
    (runtime,) = usable_runtimes([runtime or default_runtime()])
    subjects = Subject.of(base), Subject.of(head)
    differences = diff_artifacts(*(subject.artifact for subject in subjects))
    is_language_model = all(subject.is_language_model for subject in subjects)
    cases = (_parity if is_language_model else _outputs)(*subjects, runtime)
    metrics = [*_fact_metrics(*subjects), *constant_metrics(differences), _case_metric(*cases)]
    if all(case.outcome == "pass" for case in cases):
        metrics += _time_metrics(*subjects, runtime)
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


def _parity(base: Subject, head: Subject, runtime: str) -> tuple[Case, Case]:
    """Return the cases of parity; raise HarnessError when nothing could be compared."""
    check = artifact_checks()["parity"]
    return _compared(check, base, runtime), _compared(check, head, runtime)


def _outputs(base: Subject, head: Subject, runtime: str) -> tuple[Case, Case]:
    """Return the cases of `outputs`, both against what BASE gives in `double`.

    Raises HarnessError when BASE could not be compared. HEAD may have lost a method or an input.
    """
    artifact = base.artifact
    values = golden_of_runtime(artifact, "mil:double", all_inputs(artifact, base.seed))
    base.golden = head.golden = values
    check = value_checks()["outputs"]
    return _compared(check, base, runtime), run_check(check, head, runtime, suite="gate")


def _compared(check: Check[Subject], subject: Subject, runtime: str) -> Case:
    """Return a check's case; raise HarnessError when nothing could be compared.

    Two artifacts that cannot be executed would otherwise be equally bad, and pass.
    """
    case = run_check(check, subject, runtime, suite="gate")
    if case.outcome not in ("pass", "fail"):
        raise HarnessError(case.reason)
    return case


def _case_metric(base: Case, head: Case) -> Metric:
    verdict, reason = outcome_verdict(base, head)
    return Metric("artifact", base.check, "outcome", base.outcome, head.outcome, verdict, reason)


def _time_metrics(base: Subject, head: Subject, runtime: str) -> Iterator[Metric]:
    """Time both in one session; each timed run checks its own answer."""
    for timed in time_artifacts(base, head, runtime):
        yield timed.metric("artifact")
