"""Holds an artifact's operations against the graph of the model that it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness.artifact import Artifact
from harness.divergence.culprit import Comparison, Divergence, compare
from harness.divergence.match import TOLERANCE, Catalogue, distance
from harness.divergence.part import Part
from harness.divergence.recording import Recorder
from harness.divergence.stages import Graph
from harness.errors import HarnessError
from harness.mil import get_policy
from harness.runtimes.base import Method
from harness.subject import Subject

if TYPE_CHECKING:
    from harness.models.config import ModelConfig

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

    @property
    def compared(self) -> int:
        """How many operations were looked at."""
        return self.matched + self.excused + (self.first is not None)


class ModelJudge:
    """A runtime whose methods compute the model, and compare the artifact's operations with it.

    Every call is answered by the graph: caches stay right whatever the artifact makes of them, so
    that what is found in a call was done in that call.
    """

    name = "bisect"

    def __init__(self, subject: Subject, part: Part) -> None:
        config, weights = model_of(subject)
        self._config = config
        self.graph = Graph(config, weights, _DTYPES[subject.dtype])
        self.report = ModelReport()
        self._recorder = Recorder(get_policy("double"))
        self._part = part

    def unavailable(self) -> str | None:
        """Return None: this runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method; raises HarnessError when its sizes are not the model's."""
        loaded = self._recorder.load(artifact, method)
        _check_sizes(loaded, self._config)
        return _Judged(self, loaded)

    def judge(self, method: Method, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Answer a call; compare it, unless an earlier call has left the model."""
        expected = self.graph.run(inputs)
        report = self.report
        if report.first is None and not report.output and self._part.has_method(method.name):
            given = method(*inputs)
            wanted = [r for r in self._recorder.recordings if self._part.has(r.place)]
            found = compare(wanted, Catalogue(self.graph.stages))
            self._add(found)
            if found.first is None and self._part.function is None:
                report.output = _wrong_output(method, given, expected)
        return expected

    def _add(self, found: Comparison) -> None:
        self.report.calls += 1
        self.report.matched += found.matched
        self.report.excused += found.excused
        self.report.first = found.first


class _Judged:
    def __init__(self, judge: ModelJudge, method: Method) -> None:
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs
        self._judge, self._method = judge, method

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._judge.judge(self._method, tensors)


def model_of(subject: Subject) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Return the model that an artifact should compute: the checkpoint's, quantized and rounded as
    the artifact is; without one, what the artifact holds, and then a wrong weight cannot be seen.

    The norms' epsilon is the checkpoint's: nothing is taken from the program that is judged.
    """
    if subject.checkpoint is None or subject.params is None:
        return subject.held, subject.weights
    from harness.models.checkpoint import load_checkpoint
    from harness.models.config import load_params
    from harness.models.quantize import exported_weights, read_scheme

    config = load_params(subject.params)
    options, dtype = subject.options, subject.dtype
    quantization = options.quantization if options else read_scheme(subject.artifact, dtype)
    weights = exported_weights(load_checkpoint(subject.checkpoint, config), config, quantization)
    eps = torch.tensor(config.norm_eps, dtype=_DTYPES[subject.dtype])
    return replace(config, norm_eps=float(eps)), weights


def _check_sizes(method: Method, config: ModelConfig) -> None:
    """Raise HarnessError unless a method takes and returns what the model does."""
    caches = [spec.shape for spec in method.inputs[4 : 4 + 2 * config.n_layers]]
    heads = {(shape[1], shape[-1]) for shape in caches if len(shape) == 4}
    found = {
        "layers": (len(method.inputs) - 4) // 2,
        "key-value heads and their width": heads.pop() if len(heads) == 1 else sorted(heads),
        "tokens in the vocabulary": method.outputs[0].shape[-1] if method.outputs else 0,
    }
    model = (config.n_layers, (config.n_kv_heads, config.head_dim), config.vocab_size)
    for (what, have), want in zip(found.items(), model, strict=True):
        if have != want:
            raise HarnessError(
                f"method '{method.name}' was not exported from this model: {what}: {have}, the "
                f"model has {want}; give the artifact's own checkpoint and params"
            )


def _wrong_output(
    method: Method, given: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
) -> str:
    """Say which output is not the model's although every operation is; "" when none."""
    for spec, have, want in zip(method.outputs, given, expected, strict=True):
        error = distance(have, want.reshape(-1)) if have.numel() == want.numel() else torch.inf
        if error > TOLERANCE:
            return (
                f"method '{method.name}': output '{spec.name}' is off by {error:.3g} of its "
                "largest value although every operation agrees with the model: it is another "
                "value than it should be, by the order of metadata.json or of the program's outputs"
            )
    return ""
