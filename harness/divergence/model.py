"""Holds an artefact's operations against the graph of the model that it was exported from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness.artifact import Artifact
from harness.checks.subject import Subject
from harness.divergence.culprit import Comparison, Divergence, compare
from harness.divergence.match import TOLERANCE, Catalogue
from harness.divergence.recording import Recorder
from harness.divergence.stages import Graph
from harness.errors import HarnessError
from harness.mil import get_policy
from harness.runtimes.base import Method

if TYPE_CHECKING:
    from harness.llama.config import LlamaConfig

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass
class ModelReport:
    """What was compared: calls, operations that hold a value of the model, operations between
    such; the first operation that leaves the model; and outputs that are wrong without one."""

    calls: int = 0
    matched: int = 0
    excused: int = 0
    first: Divergence | None = None
    output: str = ""


class ModelJudge:
    """A runtime whose methods compute the model, and compare the artefact's operations with it.

    Every call is answered by the graph: caches stay right whatever the artefact makes of them, so
    that what is found in a call was done in that call.
    """

    name = "bisect"

    def __init__(self, subject: Subject, wanted: Callable[[str], bool] = lambda method: True):
        config, weights = model_of(subject)
        self.graph = Graph(config, weights, _DTYPES[subject.dtype])
        self.report = ModelReport()
        self._recorder = Recorder(get_policy("double"))
        self._wanted = wanted

    def unavailable(self) -> str | None:
        """Return None: this runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method of the artefact."""
        return _Judged(self, self._recorder, self._recorder.load(artifact, method))

    def judge(self, method: Method, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Answer a call; compare it, unless an earlier call has left the model."""
        expected = self.graph.run(inputs)
        report = self.report
        if report.first is None and not report.output and self._wanted(method.name):
            given = method(*inputs)
            catalogue = Catalogue(self.graph.stages)
            found = compare(self._recorder.recordings, catalogue)
            self._add(found)
            if found.first is None:
                report.output = _wrong_output(method, given, expected)
        return expected

    def _add(self, found: Comparison) -> None:
        self.report.calls += 1
        self.report.matched += found.matched
        self.report.excused += found.excused
        self.report.first = found.first


class _Judged:
    def __init__(self, judge: ModelJudge, recorder: Recorder, method: Method) -> None:
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs
        self._judge, self._method = judge, method

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._judge.judge(self._method, tensors)


def model_of(subject: Subject) -> tuple[LlamaConfig, dict[str, torch.Tensor]]:
    """Return the model that an artefact should compute: the checkpoint's, quantised and rounded as
    the artefact is; without one, what the artefact holds, and then a wrong weight cannot be seen.

    The norms' epsilon is the checkpoint's: nothing is taken from the program that is judged.
    """
    if subject.checkpoint is None or subject.params is None:
        return subject.held
    from harness.checks.scheme import read_scheme
    from harness.llama.checkpoint import load_checkpoint
    from harness.llama.config import load_params
    from harness.llama.quantize import exported_weights

    config = load_params(subject.params)
    options = subject.options or read_scheme(subject.artifact, subject.dtype)
    weights = exported_weights(load_checkpoint(subject.checkpoint, config), config, options)
    eps = torch.tensor(config.norm_eps, dtype=_DTYPES[subject.dtype])
    return replace(config, norm_eps=float(eps)), weights


def _wrong_output(
    method: Method, given: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
) -> str:
    """Say which output is not the model's although every operation is; "" when none."""
    for spec, have, want in zip(method.outputs, given, expected, strict=True):
        if have.numel() != want.numel():
            raise HarnessError(
                f"method '{method.name}': output '{spec.name}' has shape {list(have.shape)}, the "
                f"model's has {list(want.shape)}; is this the artefact's own checkpoint?"
            )
        error = float((have.double().reshape(-1) - want.reshape(-1)).abs().max())
        if not error <= TOLERANCE * float(want.abs().max()):
            return (
                f"method '{method.name}': output '{spec.name}' is off by {error:.3g} although every "
                "operation agrees with the model: outputs are in another order, or are other "
                "values, than metadata.json or the program says"
            )
    return ""
