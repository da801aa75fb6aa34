"""Compares an artifact's operations with the graph of the model that it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness.artifact import Artifact
from harness.divergence.culprit import Comparison, Divergence, compare
from harness.divergence.recording import Part, Recorder
from harness.divergence.stages import TOLERANCE, Catalogue, Graph, distance
from harness.errors import HarnessError
from harness.mil import get_policy
from harness.runtimes.base import Method
from harness.subject import Subject

if TYPE_CHECKING:
    from harness.models import ModelConfig

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass
class ModelReport:
    """The result of comparing an artifact with the model's graph.

    It counts the calls, the operations that match a stage and those that are excused. It names the
    first operation that leaves the model, or an output that is wrong although no operation is.
    """

    calls: int = 0
    matched: int = 0
    excused: int = 0
    first: Divergence | None = None
    output: str = ""

    @property
    def compared(self) -> int:
        """How many operations were compared."""
        return self.matched + self.excused + (self.first is not None)


class ModelJudge:
    """A runtime whose methods compute the model and compare the artifact's operations with it.

    The graph answers every call, so the caches stay right even if the artifact's are wrong: an
    error that is found in a call was made in that call.
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
        """Answer a call, and compare it unless an earlier call has left the model."""
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
    """Return the model that an artifact should compute.

    With a checkpoint, these are its weights, quantized and rounded as in the artifact, and its
    epsilon: nothing comes from the program that is judged. Without one, these are the artifact's
    own weights, and a wrong weight cannot be found.
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
    """Raise HarnessError unless a method has the model's sizes."""
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
    """Name an output that differs from the model although every operation agrees; "" if none."""
    for spec, have, want in zip(method.outputs, given, expected, strict=True):
        error = distance(have, want.reshape(-1)) if have.numel() == want.numel() else torch.inf
        if error > TOLERANCE:
            return (
                f"method '{method.name}': output '{spec.name}' is off by {error:.3g} of its "
                "largest value although every operation agrees with the model: the order of "
                "metadata.json or of the program's outputs returns another value in its place"
            )
    return ""
