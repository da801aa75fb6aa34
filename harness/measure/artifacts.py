"""The gate on two artifacts: structure, then numbers, then time, HEAD against BASE in each.

Two artifacts that are each true to their own weights can differ, so neither is held against itself
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.artifact import Artifact
from harness.artifact.exported import is_exported
from harness.artifact.pte_reader import read_pte
from harness.checks import Check, artifact_checks, run_check, value_checks
from harness.checks.accuracy import Error
from harness.checks.agreement import trace_distances
from harness.checks.containers import pte
from harness.checks.findings import BECAUSE, causes_only
from harness.checks.outputs import module, output_distances, values
from harness.checks.weights import checkpoint, unshared_export
from harness.diff import Difference, check_readable
from harness.errors import ArtifactError, HarnessError
from harness.measure import TWO_KINDS, GateResult, Metric
from harness.measure.comparison import time_artifacts
from harness.measure.statistics import Goal
from harness.measure.structure import structure_metrics
from harness.measure.verdicts import TIERS, fact_margin, fact_verdict, outcome_verdict
from harness.results import Case
from harness.runtimes import REFERENCE, default_runtime, usable_runtimes
from harness.subject import Subject, executable
from harness.text import counted

_NOT_JUDGED = ("error", "crash", "timeout")  # outcomes of a check that could not compare anything
_KINDS = {"pte": "a .pte", "folder": "an exported folder", "mlpackage": "an .mlpackage"}
# What HEAD may have changed knowingly, so that other outputs are a change and no regression.
_EXPLAINS_OUTPUTS = ("weights", "tables", "constants", "program", "interface", "names", "options")


def compare_artifacts(
    base: Subject | str | Path,
    head: Subject | str | Path,
    runtime: str | None = None,
    tiers: Iterable[str] = TIERS,
    progress: Callable[[str], None] = lambda stage: None,
    goal: Goal | None = None,
) -> GateResult:
    """Compare two artifacts, executed on a runtime, without a name on this machine's default.

    `tiers` are those of `TIERS` to compare; only `structure` executes nothing. Times have a `goal`.

    Raises NotInstalledError when the runtime cannot be used here, HarnessError for two artifacts of
    different kinds, for a damaged BASE, and for an unknown tier.
    """
    if unknown := [tier for tier in tiers if tier not in TIERS]:
        raise HarnessError(f"no tier '{unknown[0]}'; choose from {', '.join(TIERS)}")
    (runtime,) = usable_runtimes([runtime or default_runtime()])
    opened = _opened(head)
    if isinstance(opened, ArtifactError):
        return GateResult((_damaged(opened),), ())
    sides, notes = _held_against_the_same(Subject.of(base), opened)
    gate = _Gate(*sides, runtime, progress, goal)
    gate.notes += [*_other_kind(*sides), *notes]
    for tier in TIERS:
        if tier in tiers:
            getattr(gate, tier)()
    return GateResult(tuple(gate.metrics), tuple(gate.notes))


def _opened(head: Subject | str | Path) -> Subject | ArtifactError:
    """Open HEAD; return the error for a program whose packages cannot be found.

    Raises ArtifactError for a path that holds no program at all.
    """
    try:
        return Subject.of(head)
    except ArtifactError as error:
        path = head if isinstance(head, str | Path) else head.artifact.path
        if Path(path).suffix == ".pte":
            read_pte(Path(path))
            return error
        if is_exported(Path(path)):
            return error
        raise


def _held_against_the_same(
    base: Subject, head: Subject
) -> tuple[tuple[Subject, Subject], list[str]]:
    """Return both sides, each with the references that only the other had, and notes on these.

    A side that is too damaged keeps its own: its checks say what is wrong.
    """
    try:
        sides = base.with_references_of(head), head.with_references_of(base)
    except HarnessError:
        return (base, head), []
    ours, theirs = (
        ", ".join(key for key in after.references if key not in before.references)
        for before, after in zip((base, head), sides, strict=True)
    )
    notes = [f"BASE is held against HEAD's {ours}"] if ours else []
    return sides, [*notes, f"HEAD is held against BASE's {theirs}"] if theirs else notes


def _other_kind(base: Subject, head: Subject) -> Iterator[str]:
    """Yield a note when BASE and HEAD are of two kinds or modes, so that much must differ."""
    with suppress(HarnessError):  # of a damaged side, which its checks report
        ours, theirs = _kind(base), _kind(head)
        if ours != theirs:
            yield f"{TWO_KINDS}: BASE is {ours}, HEAD {theirs}; most differences come from that"


def _kind(subject: Subject) -> str:
    kind = _KINDS[subject.artifact.kind]
    return f"{kind} in mode {subject.mode}" if subject.is_language_model else kind


def _damaged(error: ArtifactError) -> Metric:
    return _regression("artifact", "structure", f"HEAD is damaged: {error}")


class _Gate:
    """One comparison; each tier adds its metrics and notes."""

    def __init__(
        self,
        base: Subject,
        head: Subject,
        runtime: str,
        progress: Callable[[str], None],
        goal: Goal | None,
    ) -> None:
        self.metrics: list[Metric] = []
        self.notes: list[str] = []
        self._subjects = base, head
        self._runtime = runtime
        self._progress = progress
        self._goal = goal
        self._damage = ""  # what HEAD cannot be read for
        self._found_in_head: list[Case] = []  # cases that BASE passes

    def structure(self) -> None:
        """Compare what both hold, and the checks that execute nothing.

        Raises ArtifactError when BASE is damaged; a damaged HEAD is a regression.
        """
        self._progress("comparing programs and weights")
        try:
            base, head = (subject.artifact for subject in self._subjects)
            metrics, differences = structure_metrics(*self._subjects)
            self.metrics += [*_size_metrics(base, head), *metrics]
            self.notes += _notes(differences)
        except ArtifactError as error:
            check_readable(self._subjects[0].artifact)
            self.metrics.append(_damaged(error))
            self._damage = str(error)
        self._run_checks(executing=False)

    def numbers(self) -> None:
        """Run the checks that execute, and compare what HEAD computes with what BASE does."""
        self._run_checks(executing=True)
        if self._damage:
            self.notes.append("Not compared: what both compute: HEAD is damaged")
            return
        base, head = self._subjects
        is_language_model = base.is_language_model and head.is_language_model
        compared = trace_distances if is_language_model else output_distances
        # A runtime that rounds hides small errors, so one that does not always runs too.
        for runtime in dict.fromkeys([self._runtime, REFERENCE]):
            case = f"what both compute on {runtime}"
            self._progress(f"comparing {case}")
            try:
                distances = list(compared(base, head, runtime))
                if not sum(found.count for _, found, _ in distances):
                    raise HarnessError("neither has an output that could be compared")
                for where, found, bound in distances:
                    self.metrics.append(self._output_metric(case, where, found, bound))
            except HarnessError as error:
                self.metrics.append(self._not_compared(case, str(error)))

    def time(self) -> None:
        """Time both in turn, when both compute what they should."""
        wrong = [m for m in self.metrics if m.verdict == "regression" and m.kind != "fact"]
        if wrong:
            self.notes.append(f"Not timed: {wrong[0].name} is worse in HEAD")
            return
        self._progress(f"timing both on {self._runtime}")
        runtimes = self._runtime, self._runtime
        try:
            timed = time_artifacts(*self._subjects, runtimes, self._goal, self._progress)
            self.metrics += [one.metric("time") for one in timed]
        except HarnessError as error:
            metric = Metric("time", "all", "figure", "", "", "inconclusive", str(error))
            self.metrics.append(metric)

    def _run_checks(self, executing: bool) -> None:
        """Add the outcome of each check that applies; say once why others do not."""
        skipped: dict[str, list[str]] = {}
        for found in _checks(self._subjects[0]):
            executes = found.takes_runtime or executable in found.needs
            if executes != executing:
                continue
            self._progress(f"checking {found.name}")
            runtime = self._runtime if found.takes_runtime else None
            base, head = (run_check(found, x, runtime, suite="gate") for x in self._subjects)
            if not executing or self._damage:
                head = self._without_effects(base, head)
            has_none = head.outcome == "skip" and _does_not_apply(found, self._subjects[1])
            is_effect = head.outcome == "skip" and head.reason.startswith(BECAUSE)
            if base.outcome == head.outcome == "skip" or has_none or is_effect:
                skipped.setdefault(head.reason, []).append(found.name)
            else:
                self.metrics.append(_outcome_metric(base, head))
        for reason, names in skipped.items():
            way = ": name a subject of harness.toml that has them" if "checkpoint" in reason else ""
            self.notes.append(f"Not checked: {', '.join(names)}: {reason}{way}")

    def _without_effects(self, base: Case, head: Case) -> Case:
        """Return a case of HEAD, skipped when an earlier finding in HEAD alone explains it."""
        if self._damage and self._damage in head.reason:
            reason = f"{BECAUSE}HEAD is damaged"
            return replace(head, outcome="skip", stage="", signal="", reason=reason, findings=())
        *_, judged = causes_only([*self._found_in_head, head])
        if base.passes and not judged.passes:
            self._found_in_head.append(judged)
        return judged

    def _output_metric(self, case: str, where: str, found: Error, bound: float) -> Metric:
        verdict, cause = "same", ""
        if not found.relative <= bound:
            verdict, cause = self._wrong_outputs()
        reason = (
            f"{cause}HEAD differs from BASE by {found.relative:.3g} of the largest value; "
            f"{bound:.3g} is allowed"
        )
        numbers = {"bound": bound, "values": found.count}
        if math.isfinite(found.relative):
            numbers["difference"] = found.relative
        return Metric(case, where, "figure", "", "", verdict, reason, "outputs", numbers)

    def _wrong_outputs(self) -> tuple[str, str]:
        """Return the verdict on outputs that are not BASE's, and how HEAD's own checks explain it.

        When the oracle finds HEAD wrong, they are worse; when it finds BASE wrong, better.
        """
        outcomes = {m.name: m for m in self.metrics if m.kind == "outcome"}
        parity = outcomes.get("parity")
        if parity is not None and parity.head != "pass":
            return "regression", f"HEAD is not what {self._judge(1)}; "
        if parity is not None and parity.base != "pass":
            return "better", f"BASE is not what {self._judge(0)}; "
        changes = (m.accept for m in self.metrics if m.verdict == "changed")
        if any(accept in _EXPLAINS_OUTPUTS for accept in changes):
            return "changed", ""
        return "regression", ""

    def _judge(self, side: int) -> str:
        """Return what the oracle's weights come from, with its verb."""
        has_checkpoint = self._subjects[side].checkpoint is not None
        return "the checkpoint gives" if has_checkpoint else "its own weights give"

    def _not_compared(self, case: str, reason: str) -> Metric:
        """Return the metric of two artifacts that could not be called alike.

        HEAD may have changed its interface knowingly. Otherwise it is HEAD's fault when BASE passes
        its own checks.
        """
        outcomes = [m for m in self.metrics if m.kind == "outcome"]
        changes = {m.accept for m in self.metrics if m.verdict == "changed"}
        if "interface" in changes and all(m.verdict != "regression" for m in outcomes):
            return Metric(case, "outputs", "figure", "", "", "changed", reason, "outputs")
        if all(m.base in ("pass", "skip") for m in outcomes):
            return _regression(case, "outputs", reason)
        return Metric(case, "outputs", "outcome", "", "", "inconclusive", reason)


def _regression(case: str, name: str, reason: str) -> Metric:
    return Metric(case, name, "outcome", "", "", "regression", reason)


def _checks(subject: Subject) -> list[Check[Subject]]:
    """Return the checks that may apply to both, as `harness check` chooses them."""
    if subject.is_language_model and not subject.has_golden:
        return list(artifact_checks().values())
    return list((artifact_checks() | value_checks()).values())


def _does_not_apply(found: Check[Subject], subject: Subject) -> bool:
    """Return whether a check does not apply: without a reference, or to this kind of file."""
    try:
        failing = next((need for need in found.needs if need(subject)), None)
        without_module = failing is module and subject.reference_module is None
    except HarnessError:
        return False
    return without_module or failing in (checkpoint, unshared_export, values, pte)


def _outcome_metric(base: Case, head: Case) -> Metric:
    verdict, reason = outcome_verdict(base, head)
    if base.outcome in _NOT_JUDGED and head.outcome in _NOT_JUDGED:
        verdict = "inconclusive"
    if not head.passes:
        reason = head.reason
    outcomes = base.outcome, head.outcome
    case = "the artifact's own checks"
    return Metric(case, base.check, "outcome", *outcomes, verdict, reason)


def _notes(found: Iterable[Difference]) -> Iterator[str]:
    randoms = sum(one.is_incidental for one in found)
    names = sum(one.is_name or one.kind == "names" for one in found)
    if randoms:
        yield f"Not counted: {counted(randoms, 'random identifier, date or debug file')}"
    if names:
        what = counted(names, "difference")
        yield f"Not counted: {what} of names or order that change no result"


def _size_metrics(base: Artifact, head: Artifact) -> Iterator[Metric]:
    ours, theirs = _size(base), _size(head)
    name = f"{base.kind} bytes" if base.kind == head.kind else "bytes"
    verdict, reason = fact_verdict(ours, theirs, fact_margin(name, ours, {}))
    yield Metric("artifact", name, "fact", f"{ours:,}", f"{theirs:,}", verdict, reason)
    counts = len(base.packages), len(head.packages)
    verdict = "same" if counts[0] == counts[1] else "changed"
    texts = str(counts[0]), str(counts[1])
    yield Metric("artifact", "packages", "fact", *texts, verdict, accept="program")


def _size(artifact: Artifact) -> int:
    if artifact.package is not None:
        return artifact.package.size
    assert artifact.pte is not None
    return artifact.pte.size
