"""An artifact with everything that it is compared with: model, checkpoint, scheme, reference.

The functions say why a check does not apply to a subject, where several modules of checks need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import Artifact, open_artifact
from harness.artifact.delegate import BACKEND
from harness.errors import ArtifactError, HarnessError, NoReferenceError
from harness.generate.layout import describes_model, mode_of, windows_of
from harness.text import params_beside

if TYPE_CHECKING:
    import torch

    from harness.export.options import ExportOptions
    from harness.generate.session import Session
    from harness.golden import Golden, Steps
    from harness.golden.eager import Reference
    from harness.golden.weights import Match
    from harness.models import ModelConfig, Weights
    from harness.models.model import Freqs
    from harness.models.stream import Computed, Passage, StreamedModel

_DTYPES = {"float16": "fp16", "float32": "fp32"}
_MAX_NAMED = 4  # weights in a message


class Subject:
    """One artifact under test.

    `checkpoint` and `params` are the sources of the export; without them, the oracle uses the
    artifact's own weights. `options` are those of the export; without them, they are read from the
    artifact. `unshared` is the same export with weight sharing off.

    Where no constants describe a language model, the checkpoint's model is the reference of each
    call. An artifact of any model may have a `reference`, `module:function` of an eager module, or
    a `golden` file instead; `seed` decides the inputs where the file does not.

    Without `params`, they are beside the checkpoint. Raises HarnessError when there are none, and
    for two sources of values. Everything is computed on first use and kept.
    """

    def __init__(
        self,
        path: str | Path,
        checkpoint: str | Path | None = None,
        params: str | Path | None = None,
        options: ExportOptions | None = None,
        unshared: Path | None = None,
        reference: str | None = None,
        golden: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if checkpoint is None and params is not None:
            raise HarnessError("params without a checkpoint: give the checkpoint, too, or neither")
        if reference and golden:
            raise HarnessError("reference and golden are two sources of values: give one")
        self.artifact: Artifact = open_artifact(path)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        found = params if checkpoint is None else params or params_beside(checkpoint)
        self.params = None if found is None else Path(found)
        self.options = options
        self.unshared = unshared
        self.reference_name = reference
        self.golden_path = None if golden is None else Path(golden)
        self.seed = seed
        self.measured: dict[str, object] = {}  # by runtime: see `harness.checks.accuracy.measure`
        self.upcoming: Callable[[], Iterable[Passage]] = tuple  # those that checks will compute
        self._sessions: dict[str, Session] = {}

    @classmethod
    def of(cls, given: Subject | str | Path) -> Subject:
        """Return a subject as it is, and that of a path without a reference."""
        return given if isinstance(given, Subject) else cls(given)

    def with_references_of(self, other: Subject) -> Subject:
        """Return this subject with the references that only the other has; itself without any.

        An artifact of another kind gives none. A golden file that does not fit is not taken, nor
        are options of another quantization. Raises HarnessError for a damaged artifact.
        """
        if vars(self).get("golden") or self.is_language_model != other.is_language_model:
            return self
        taken = Subject(
            self.artifact.path,
            self.checkpoint or other.checkpoint,
            self.params or other.params,
            self.options or other._options_for(self),
            self.unshared,
            self.reference_name,
            self.golden_path,
            self.seed,
        )
        if not (self.reference_name or self.golden_path) and other._values_fit(self.artifact):
            taken.reference_name, taken.golden_path = other.reference_name, other.golden_path
            taken.seed = other.seed
        return taken if taken.references != self.references else self

    @property
    def references(self) -> dict[str, object]:
        """What the artifact is held against, by name, without what is not given."""
        found: dict[str, object] = {
            "checkpoint": self.checkpoint,
            "params": self.params,
            "options": self.options,
        }
        found |= {"reference": self.reference_name, "golden": self.golden_path}
        return {name: value for name, value in found.items() if value is not None}

    def _options_for(self, other: Subject) -> ExportOptions | None:
        """Return the options of this export if the other artifact has the same quantization."""
        from harness.models.quantize import read_scheme

        if self.options is None or not self.is_language_model:
            return None
        schemes = {read_scheme(one.artifact, one.dtype) for one in (self, other)}
        return self.options if len(schemes) == 1 else None

    def _values_fit(self, artifact: Artifact) -> bool:
        """Return whether there is a reference or a golden file, and the file fits an artifact."""
        from harness.golden.files import read_golden

        try:
            file = self.golden_path and read_golden(self.golden_path, artifact)
        except HarnessError:
            return False
        return bool(self.reference_name or file)

    @property
    def is_language_model(self) -> bool:
        """Whether it describes a language model of ExecuTorch's static runner, if only in part."""
        return describes_model(self.artifact.constants)

    @cached_property
    def reference_module(self) -> Reference | None:
        """The user's eager module, or the checkpoint's model where no constants describe one."""
        if self.reference_name:
            from harness.golden.eager import Reference

            return Reference.imported(self.reference_name)
        if self.checkpoint is None or self.params is None or self.is_language_model:
            return None
        from harness.golden.language import checkpoint_reference

        return checkpoint_reference(self.artifact, self.checkpoint, self.params)

    @cached_property
    def reference_weights(self) -> list[Match]:
        """The artifact's weights, each with the parameter of the eager module that it is."""
        module = self.reference_module
        return [] if module is None else module.weight_matches(self.artifact, self._inputs)

    @cached_property
    def _inputs(self) -> dict[str, dict[str, Steps]]:
        """The seeded calls of each method; tokens follow one another where a checkpoint says so."""
        from harness.golden.inputs import all_inputs

        given = None
        if not self.reference_name and self.checkpoint and not self.is_language_model:
            from harness.golden.language import token_sequences

            given = token_sequences(self.artifact, self.seed)
        return all_inputs(self.artifact, self.seed, given)

    @property
    def has_golden(self) -> bool:
        """Whether there is a source of golden values, or somebody has set them."""
        given = self.reference_name or self.golden_path or vars(self).get("golden")
        return bool(given or (self.checkpoint and not self.is_language_model))

    @cached_property
    def golden(self) -> Golden | None:
        """The calls of each method and what they must give, None without a source of them.

        Raises HarnessError when the file does not fit the artifact, or the module fails.
        """
        from harness.golden.files import read_golden

        if self.golden_path:
            return read_golden(self.golden_path, self.artifact)
        if self.reference_module is None:
            return None
        return self.reference_module.golden(self.artifact, self._inputs)

    @cached_property
    def mode(self) -> str:
        """`single` or `multifunction`."""
        return mode_of(self.artifact.constants)

    @property
    def held(self) -> ModelConfig:
        """The sizes of the model that the artifact holds."""
        return self._held[0]

    @cached_property
    def _held(self) -> tuple[ModelConfig, Weights]:
        """The artifact's own model."""
        from harness.models.recognise import read_model

        return read_model(self.artifact, "forward")

    @cached_property
    def config(self) -> ModelConfig:
        """The sizes of `params`, with the norm epsilon and attention scale of the artifact."""
        if self.params is None:
            return self.held
        from harness.models.config import load_params

        return replace(
            load_params(self.params),
            norm_eps=self.held.norm_eps,
            attention_scale=self.held.attention_scale,
        )

    @cached_property
    def expected_weights(self) -> Weights | None:
        """The checkpoint's weights after the exporter's quantization, None without a checkpoint."""
        if self.checkpoint is None or self.params is None:
            return None
        from harness.models.quantize import read_scheme
        from harness.models.stream import checkpoint_weights

        options, dtype = self.options, self.dtype
        quantization = options.quantization if options else read_scheme(self.artifact, dtype)
        return checkpoint_weights(self.checkpoint, self.config, quantization, self._held[1])

    @property
    def weights(self) -> Weights:
        """The expected weights, or without a checkpoint the artifact's, dequantized to fp32."""
        return self._held[1] if self.expected_weights is None else self.expected_weights

    @cached_property
    def model(self) -> StreamedModel:
        """The plain causal model with `weights`: what the artifact must compute."""
        from harness.models.quantize import DTYPES
        from harness.models.stream import StreamedModel

        windows = windows_of(self.artifact.constants)
        return StreamedModel(self.config, self.weights, DTYPES[self.dtype], self.tables, windows)

    @cached_property
    def tables(self) -> Freqs:
        """The artifact's RoPE tables, each [positions, head_dim / 2]."""
        from harness.runtimes import REFERENCE

        layout = self.session(REFERENCE).layout
        return layout.freqs_cos, layout.freqs_sin

    @property
    def dtype(self) -> str:
        """The artifact's own float dtype, `fp16` or `fp32`: that of a language model's RoPE tables.

        The dtype of another model is fp16 when an operation gives FLOAT16.
        """
        if not self.is_language_model:
            from harness.golden.inputs import float_dtype

            return float_dtype(self.artifact)
        dtype = str(getattr(self.artifact.constants.get("freqs_cos"), "dtype", "missing"))
        if dtype not in _DTYPES:
            raise ArtifactError(
                f"{self.artifact.path}: its constant 'freqs_cos' is {dtype}; a float16 or float32 "
                "table is needed"
            )
        return _DTYPES[dtype]

    def session(self, runtime: str) -> Session:
        """Return a new session on a runtime; methods are loaded once.

        Raises NotInstalledError when the runtime cannot be used here.
        """
        from harness.generate.session import Session

        if runtime not in self._sessions:
            self._sessions[runtime] = Session.open(self.artifact, runtime)
        self._sessions[runtime].reset()
        return self._sessions[runtime]

    def reference(
        self, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return fp64 logits [tokens, vocab] of the plain causal model, and each layer's caches.

        Keys and values are [n_kv_heads, tokens, head_dim]. Raises NoReferenceError when the logits
        are not finite, and cannot be compared with others.
        """
        from harness.models.stream import whole_passage

        (found,) = self.model.compute([whole_passage(tokens)])
        self._require_finite(found)
        return found.logits(range(len(tokens))), found.keys, found.values

    def computed(self, passage: Passage) -> Computed:
        """Return the results of a passage by the model of `reference`, and keep them.

        All that `upcoming` lists is computed in the same pass. Raises as `reference` does.
        """
        found = self.model.computed(passage, self.upcoming)
        self._require_finite(found)
        return found

    def _require_finite(self, found: Computed) -> None:
        if not found.largest.isfinite().all():
            raise NoReferenceError(
                "the reference itself, PyTorch in fp64, gives NaN or infinity, so there is nothing "
                f"to compare with: {self._cause_of_nan()}"
            )

    def _cause_of_nan(self) -> str:
        of = "artifact" if self.expected_weights is None else "checkpoint"
        bad = [name for name, weight in self.weights.items() if not weight.isfinite().all()]
        if not bad:
            return f"the {of}'s weights are finite, but the model overflows"
        more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
        return f"the {of}'s weights hold NaN or infinity, in {', '.join(bad[:_MAX_NAMED])}{more}"


def language_model(subject: Subject) -> str | None:
    """Return why an artifact that is no language model of the static runner is skipped, or None.

    Raises HarnessError when it was exported as one: its description is lost.
    """
    if subject.is_language_model or subject.options:
        _ = subject.mode
        return None
    return (
        "judges language models that describe themselves for ExecuTorch's static runner, by "
        "constants such as 'forward_input_len'"
    )


def executable(subject: Subject) -> str | None:
    """Return why an artifact that only in part is Core ML's cannot be executed, or None."""
    found = other_backends(subject.artifact)
    return f"calls delegates of {', '.join(found)}, which are not executed" if found else None


def other_backends(artifact: Artifact) -> list[str]:
    """Return the names of the backends beside Core ML that a program delegates to."""
    methods = artifact.pte.methods.values() if artifact.pte else ()
    return sorted({d.backend for m in methods for d in m.delegates} - {BACKEND})
