"""Measures how near values come to the limits of fp16, in every call; see `harness.mil.ranges`."""

from __future__ import annotations

import torch

from harness.artifact import Artifact
from harness.divergence.part import Part
from harness.divergence.recording import Recorder
from harness.mil import get_policy
from harness.mil.ranges import Range, RangeMonitor
from harness.runtimes.base import Method


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


class _Watched:
    def __init__(self, judge: RangeJudge, method: Method) -> None:
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs
        self._judge, self._method = judge, method

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self._method(*tensors)
        self._judge.watch()
        return results


def to_json(row: Range) -> dict[str, object]:
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
    }
