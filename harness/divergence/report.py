"""A bisection as a whole: an artefact against the model's graph, and a policy against `double`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from harness.checks.subject import Subject
from harness.divergence.culprit import Divergence
from harness.divergence.drive import drive
from harness.divergence.model import ModelJudge, ModelReport
from harness.divergence.part import Part
from harness.divergence.precision import PrecisionJudge, PrecisionReport
from harness.divergence.ranges import Range, RangeJudge
from harness.errors import HarnessError

__all__ = ["Bisection", "Part", "bisect", "measured_ranges"]


@dataclass(frozen=True)
class Bisection:
    """What both references say of an artefact."""

    model: ModelReport
    precision: PrecisionReport
    has_checkpoint: bool

    @property
    def passes(self) -> bool:
        """Whether no operation, and no output, leaves its reference."""
        return not (self.model.first or self.model.output or self.precision.found)

    def to_json(self) -> dict[str, Any]:
        """All of it, the operations with what they read."""
        model, precision = self.model, self.precision
        return {
            "model": {
                "weights": "checkpoint" if self.has_checkpoint else "artefact",
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
                "accumulated": precision.accumulated,
                "found": [_to_json(found) for found in precision.found],
            },
        }


def bisect(subject: Subject, policy: str, part: Part) -> Bisection:
    """Feed a prompt, once for each reference; look at a part of the artefact only.

    Raises HarnessError when the artefact cannot be executed, is no Llama or not the checkpoint's,
    and when nothing was compared.
    """
    part.check(subject.artifact)
    model, precision = ModelJudge(subject, part), PrecisionJudge(policy, part)
    drive(subject, model)
    drive(subject, precision)
    if not model.report.compared or not precision.report.judged:
        raise HarnessError(f"{subject.artifact.path}: no operation of {part} was executed")
    return Bisection(model.report, precision.report, subject.checkpoint is not None)


def measured_ranges(subject: Subject, part: Part) -> list[Range]:
    """Feed a prompt under `widen`; the ranges of operations, the nearest to overflow first.

    Raises HarnessError when no operation has an fp16 result.
    """
    part.check(subject.artifact)
    judge = RangeJudge(part)
    drive(subject, judge)
    rows = judge.monitor.worst()
    if not rows:
        raise HarnessError(f"{subject.artifact.path}: no operation of {part} has fp16 results")
    return rows


def _to_json(found: Divergence | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
