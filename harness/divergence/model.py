"""Compares an artifact's operations with the graph of the model that it was exported from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from harness.artifact import Artifact
from harness.divergence.culprit import Comparison, Divergence, compare, with_weights
from harness.divergence.recording import LargestErrors, Part, Recorder
from harness.divergence.stages import TOLERANCE, Catalogue, Graph, Stage, distance
from harness.errors import HarnessError
from harness.golden.language import LanguageModule, held_modules
from harness.mil import get_policy
from harness.models import Cache, Surroundings
from harness.models.checkpoint import halves_of_pairs
from harness.models.model import evaluate
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
    `errors` are those of the operations, in the order of their execution. `layers` has the
    operations of each method, also of one that is called only after an operation left the model.
    """

    calls: int = 0
    matched: int = 0
    excused: int = 0
    first: Divergence | None = None
    output: str = ""
    errors: LargestErrors = field(default_factory=LargestErrors)
    layers: LargestErrors = field(default_factory=LargestErrors)

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
        dtype, self._config = _DTYPES[subject.dtype], None
        self._graphs: dict[str, Graph | CallGraph | ModuleGraph]
        if subject.reference_name is not None:
            graphs = {name: ModuleGraph(subject, name) for name in part.methods(subject.artifact)}
            self._graphs = {**graphs}
        elif subject.is_language_model:
            self._config, weights = model_of(subject)
            graph = Graph(self._config, weights, dtype)
            self._graphs = dict.fromkeys(subject.artifact.methods, graph)
        else:
            assert subject.checkpoint is not None and subject.params is not None
            modules = held_modules(subject.artifact, subject.checkpoint, subject.params)
            self._graphs = {name: CallGraph(module, dtype) for name, module in modules.items()}
        self.report = ModelReport()
        self._subject, self._seen = subject, set[str]()
        self._recorder = Recorder(get_policy("double"))
        self._part = part

    def unavailable(self) -> str | None:
        """Return None: this runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method; raises HarnessError when its sizes are not the model's."""
        loaded = self._recorder.load(artifact, method)
        if self._config is not None:
            _check_sizes(loaded, self._config)
        return _Judged(self, loaded)

    def judge(self, method: Method, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Answer a call, and compare it unless an earlier call has left the model.

        The first call of a method is compared in any case, for the layers of its operations.
        """
        graph = self._graphs[method.name]
        expected = graph.run(inputs)
        report = self.report
        is_open = report.first is None and not report.output
        is_wanted = self._part.has_method(method.name) and (
            is_open or method.name not in self._seen
        )
        self._seen.add(method.name)
        given = method(*inputs) if is_wanted else ()
        if is_open and is_wanted and len(given) != len(expected):
            raise HarnessError(
                f"method '{method.name}' has {len(given)} outputs, its reference {len(expected)}"
            )
        if is_wanted and graph.stages:
            wanted = [r for r in self._recorder.recordings if self._part.has(r.place)]
            found = compare(wanted, Catalogue(graph.stages))
            report.layers.add(found.errors)
            if not is_open:
                return expected
            self._add(found)
            if found.first is not None and (weights := self._weights(found.first.place.method)):
                report.first = with_weights(found.first, wanted, weights)
            if found.first is None and self._part.function is None:
                report.output = _wrong_output(method, given, expected)
        return expected

    def _weights(self, method: str) -> Mapping[str, torch.Tensor]:
        """Return the weights that a method of a language model holds, none of another one."""
        from harness.models.recognise import read_model

        if self._config is None:
            return {}
        try:
            return read_model(self._subject.artifact, method)[1]
        except HarnessError:  # what is broken may be what a weight is known by
            return {}

    def _add(self, found: Comparison) -> None:
        self.report.calls += 1
        self.report.matched += found.matched
        self.report.excused += found.excused
        self.report.first = found.first
        self.report.errors.add(found.errors)


class ModuleGraph:
    """Computes calls of a method by the user's eager module; all values on the way are stages.

    A single number is none: too many operations give the same.
    """

    def __init__(self, subject: Subject, method: str) -> None:
        module = subject.reference_module
        assert module is not None
        self._module, self._artifact, self._method = module, subject.artifact, method
        self.stages: list[Stage] = []

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute a call of the method; return what the module gives, in fp64."""
        results, found = self._module.stages(self._artifact, self._method, tuple(inputs))
        given = [(f"input {number}", tensor) for number, tensor in enumerate(inputs)]
        returned = [(f"result {number}", tensor) for number, tensor in enumerate(results)]
        values = [(name, t) for name, t in (*given, *found) if t.numel() > 1] + returned
        self.stages = [
            Stage(name, t.double() if t.is_floating_point() else t) for name, t in values
        ]
        return results


class CallGraph:
    """Computes calls of a method of another make, which keeps its caches in buffers or states."""

    def __init__(self, module: LanguageModule, dtype: torch.dtype) -> None:
        self._module, config = module, module.config
        self._graph = _PlacedGraph(config, module.weights(), dtype)
        self._graph.has_halves = module.has_halves
        shape = (config.n_kv_heads, module.interface.context, config.head_dim)
        empty = torch.zeros(shape, dtype=torch.float64)
        self._caches: list[Cache] = [(empty, empty)] * config.n_layers

    @property
    def stages(self) -> list[Stage]:
        """The stages of the last call."""
        return self._graph.stages

    @torch.inference_mode()
    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute a call of the method; return the logits, in fp64."""
        interface, graph = self._module.interface, self._graph
        tokens, start = inputs[interface.tokens][0], interface.position_of(inputs) or 0
        rows = torch.arange(start, start + len(tokens))
        # A mask that is given ends at the last token; without one, attention spans the cache.
        ends_at_token = interface.mask is not None or not interface.remembers
        end = start + len(tokens) if ends_at_token else interface.context
        visible = torch.arange(end) <= rows[:, None]
        mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)
        around = Surroundings(*self._module.rope(rows.tolist()), mask)
        past = [(k[:, :end], v[:, :end]) for k, v in self._caches] if interface.remembers else None
        graph.stages, graph.rows = [], rows
        graph.tap("positions", rows)
        logits, keys, values = evaluate(graph, tokens, around, past)
        self._caches = [
            (k.index_copy(1, rows, new_k), v.index_copy(1, rows, new_v))
            for (k, v), new_k, new_v in zip(self._caches, keys, values, strict=True)
        ]
        if not interface.full_logits:
            graph.tap_last_token()
        last = logits[-1:]
        if not rows.any():
            graph.stages = []  # RoPE changes nothing at position 0: no rotated value is new there
        return (logits[None] if interface.full_logits else last,)


class _PlacedGraph(Graph):
    """A graph whose keys and values are written into a cache at `rows`.

    With `has_halves`, values with the columns of heads are stages in Hugging Face's order, too.
    """

    rows: torch.Tensor
    has_halves = False

    def tap(self, name: str, value: torch.Tensor, cut: int | None = None) -> torch.Tensor:
        """Keep a value as a stage, in both orders of a head's columns."""
        width = value.shape[-1] if value.dim() > 1 and value.is_floating_point() else 0
        size = self.config.head_dim
        if self.has_halves and width in (size, self.config.q_size, self.config.kv_size):
            halves = halves_of_pairs(value.movedim(-1, 0), size).movedim(0, -1)
            self.stages.append(Stage(f"{name}, by halves", halves, cut))
        return super().tap(name, value, cut)

    def tap_last_token(self) -> None:
        """Keep the last token's rows of what follows the last layer."""
        layers = [i for i, s in enumerate(self.stages) if s.name.endswith("after feed forward")]
        for stage in self.stages[layers[-1] :]:
            self.tap(f"{stage.name} of the last token", stage.tensor[-1:], stage.cut)

    def place(self, name: str, past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        self.tap(f"{name}: the cache", past)
        return self.tap(f"{name}: cache and new", past.index_copy(1, self.rows, new), cut=0)


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
        return subject.held, dict(subject.weights)
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
                "largest value although every operation agrees with the model: it is a constant, "
                "or the order of metadata.json or of the program's outputs returns another value"
            )
    return ""
