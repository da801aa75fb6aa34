"""Finds the first operation at which an artifact differs from its reference.

A bisection compares the artifact with the model's graph, and a policy with `double`. The same calls
measure how near values come to the limits of fp16; see `harness.mil.ranges`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from harness.artifact import Artifact
from harness.checks.findings import explained
from harness.divergence.culprit import Divergence
from harness.divergence.drive import call, drive, drive_calls
from harness.divergence.model import ModelJudge, ModelReport
from harness.divergence.precision import PrecisionJudge, PrecisionReport
from harness.divergence.recording import Part, Recorder
from harness.divergence.stages import TOLERANCE
from harness.errors import HarnessError
from harness.mil import get_policy
from harness.mil.ranges import Range, RangeMonitor
from harness.results import Case, Figure, Profile, RecordedFinding, reason_of
from harness.runtimes.base import Method, Runtime
from harness.subject import Subject

__all__ = ["Bisection", "Part", "bisect", "measured_ranges", "range_json"]

_EVERYTHING = Part()


@dataclass(frozen=True)
class Bisection:
    """The comparisons of an artifact with both references.

    `model` is None without a model to compare with; `weights` says whose the model's weights are:
    those of the `checkpoint`, of the `reference`, or the `artifact`'s own. `seconds` is how long
    each comparison took.
    """

    model: ModelReport | None
    precision: PrecisionReport
    weights: str
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def passes(self) -> bool:
        """Whether all operations and outputs agree with their references, and no output is NaN."""
        leaves = self.model is not None and (self.model.first or self.model.output)
        return not (leaves or self.precision.found or self.precision.nan)

    def cases(self, fixture: str, mode: str, policy: str) -> list[Case]:
        """Return a case for each reference, with the errors of all operations, for a stream."""
        names: dict[str, Any] = {"suite": "bisect", "fixture": fixture, "mode": mode}
        made = [] if self.model is None else [_model_case(self.model, self.seconds[0], names)]
        names["runtime"] = f"mil:{policy}"
        return [*made, _precision_case(self, names)]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON; each operation has the values that it reads."""
        model, precision = self.model, self.precision
        return {
            "model": model
            and {
                "weights": self.weights,
                "calls": model.calls,
                "matched": model.matched,
                "excused": model.excused,
                "first": _to_json(model.first),
                "output": model.output or None,
            },
            "precision": {
                "calls": precision.calls,
                "judged": precision.judged,
                "skipped": precision.skipped,
                "accumulated": precision.accumulated if isfinite(precision.accumulated) else None,
                "found": [_to_json(found) for found in precision.found],
                "nan": precision.nan or None,
            },
        }


def bisect(
    subject: Subject | str | Path,
    policy: str = "strict",
    part: Part = _EVERYTHING,
    given: Mapping[str, Any] | None = None,
) -> Bisection:
    """Feed a prompt once for each reference, and compare the operations of a part.

    A language model of another make is fed one, too, if it has a checkpoint. Of another model, each
    method is called once, beside the subject's eager module if it has one. So are the methods of
    any artifact for which `given` holds a tensor for each name of an input. Without a module,
    `double` is the only reference then. Raises HarnessError when the artifact cannot be executed,
    when it is not of a known architecture or not of the checkpoint, and when nothing was compared.
    """
    subject = Subject.of(subject)
    part.check(subject.artifact)
    precision, model = PrecisionJudge(policy, part), None
    weights, start = "checkpoint" if subject.checkpoint else "artifact", perf_counter()
    if subject.reference_name is not None:
        weights, model = "reference", ModelJudge(subject, part)
        call(subject, model, part, given)
    elif given is None and (subject.is_language_model or subject.checkpoint):
        model = ModelJudge(subject, part)
        (drive if subject.is_language_model else drive_calls)(subject, model)
    middle = perf_counter()
    _feed(subject, precision, part, given)
    if not precision.report.judged or (model is not None and not model.report.compared):
        raise HarnessError(f"{subject.artifact.path}: no operation of {part} was executed")
    report = None if model is None else model.report
    if report is not None:
        precision.report.know_layers(report.layers)
    seconds = round(middle - start, 3), round(perf_counter() - middle, 3)
    return Bisection(report, precision.report, weights, seconds)


def measured_ranges(
    subject: Subject | str | Path,
    part: Part = _EVERYTHING,
    given: Mapping[str, Any] | None = None,
) -> list[Range]:
    """Return the operations' ranges under `widen`, the nearest to overflow first.

    The inputs are those of `bisect`. Raises HarnessError when no operation has an fp16 result.
    """
    subject = Subject.of(subject)
    part.check(subject.artifact)
    judge = RangeJudge(part)
    _feed(subject, judge, part, given)
    rows = judge.monitor.worst()
    if not rows:
        raise HarnessError(f"{subject.artifact.path}: no operation of {part} has fp16 results")
    return rows


def range_json(row: Range) -> dict[str, object]:
    """Return a row as JSON; the infinite margin of a result that was all zeros becomes None."""
    square = row.square_margin
    return {
        "where": row.where,
        "operation": row.operation,
        "peak": row.peak,
        "smallest_nonzero": row.least if row.nonzero else None,
        "overflow_margin": row.overflow_margin if row.nonzero else None,
        "square_margin": square if row.nonzero else None,
        "subnormal_fraction": row.subnormal_fraction,
        "vanished": row.vanished,
        "infinite": row.infinite,
        "nan": row.nan,
        "clipped_fraction": row.clipped_fraction,
    }


class RangeJudge:
    """A runtime whose methods run under `widen`; `monitor` observes the operations of a part."""

    name = "ranges"

    def __init__(self, part: Part) -> None:
        self.monitor = RangeMonitor()
        self._part = part
        self._recorder = Recorder(get_policy("widen"))

    def unavailable(self) -> str | None:
        """Return None: this runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method of the artifact."""
        return _Watched(self, self._recorder.load(artifact, method))

    def watch(self) -> None:
        """Add the call that was just recorded to the monitor."""
        for recording in self._recorder.recordings:
            if self._part.has(recording.place):
                for step in recording.steps:
                    self.monitor(step, tuple(recording.values[name] for name in step.names))
                    if step.operation == "quantize":
                        self.monitor.quantized(step, recording.operands(step))


class _Watched:
    def __init__(self, judge: RangeJudge, method: Method) -> None:
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs
        self._judge, self._method = judge, method

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self._method(*tensors)
        self._judge.watch()
        return results


def _is_called(subject: Subject, given: Mapping[str, Any] | None) -> bool:
    return given is not None or not subject.is_language_model


def _feed(subject: Subject, judge: Runtime, part: Part, given: Mapping[str, Any] | None) -> None:
    if _is_called(subject, given):
        call(subject, judge, part, given)
    else:
        drive(subject, judge)


def _to_json(found: Divergence | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _model_case(model: ModelReport, seconds: float, names: Mapping[str, Any]) -> Case:
    findings = [_finding("N26", model.first)] if model.first else []
    if model.output:
        findings.append(RecordedFinding("N28", "", model.output))
    measure = f"the distance to the value of the model's graph, over {TOLERANCE:g} of its largest"
    profile = Profile(measure, model.errors.operations())
    named = {**names, "check": "graph", "runtime": "mil:double"}
    return _case(named, findings, profile, model.compared, {}, seconds)


def _precision_case(bisection: Bisection, names: Mapping[str, Any]) -> Case:
    precision, model = bisection.precision, bisection.model
    findings = [_finding("N27", found) for found in precision.found]
    if precision.nan:
        findings.append(RecordedFinding("N28", "", precision.nan))
    layers = None if model is None else model.layers
    profile = Profile(
        "an operation's own error, over what its tolerance allows",
        precision.errors.operations(layers),
    )
    last = {"error of the last result": Figure(precision.accumulated)}
    named = {**names, "check": "rounding"}
    return _case(named, findings, profile, precision.judged, last, bisection.seconds[1])


def _case(
    named: Mapping[str, Any],
    findings: Sequence[RecordedFinding],
    profile: Profile,
    comparisons: int,
    figures: Mapping[str, Figure],
    seconds: float,
) -> Case:
    known = [one.error for one in profile.operations if one.error is not None]
    worst = profile.first.error if profile.first else max(known, default=None)
    error = {} if worst is None else {"error over allowed": Figure(worst, bound=1.0)}
    return Case(
        **named,
        outcome="fail" if findings else "pass",
        reason=reason_of([finding.sentence for finding in findings]),
        findings=tuple(map(explained, findings)),
        comparisons=comparisons,
        figures={**error, **figures},
        seconds=seconds,
        profile=profile,
    )


def _finding(code: str, found: Divergence) -> RecordedFinding:
    evidence = found.evidence.replace("\n  it reads", "; it reads")
    return RecordedFinding(code, str(found.place), evidence)
