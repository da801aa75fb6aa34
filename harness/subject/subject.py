"""What is checked: an artifact, what it should have come from, and the runtimes it runs on."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.artifact import Artifact, ArtifactError, open_artifact
from harness.generate.layout import mode_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from harness.export.options import ExportOptions
    from harness.generate.session import Session
    from harness.models.config import ModelConfig
    from harness.models.model import Freqs, Oracle

_DTYPES = {"float16": "fp16", "float32": "fp32"}


class Subject:
    """One artifact under test.

    `checkpoint` and `params` say what it was exported from; without them the oracle carries the
    weights that the artifact holds. `options` say how it was exported; without them that is read
    from the artifact. `unshared` is the same export with weight sharing off.
    """

    def __init__(
        self,
        path: str | Path,
        checkpoint: Path | None = None,
        params: Path | None = None,
        options: ExportOptions | None = None,
        unshared: Path | None = None,
    ) -> None:
        self.artifact: Artifact = open_artifact(path)
        self.checkpoint = checkpoint
        self.params = params
        self.options = options
        self.unshared = unshared
        self.measured: dict[str, Any] = {}  # what `parity.measure` gave, by runtime
        self._sessions: dict[str, Session] = {}

    @cached_property
    def mode(self) -> str:
        """`single` or `multifunction`."""
        return mode_of(self.artifact.constants)

    @cached_property
    def held(self) -> ModelConfig:
        """The sizes of the Llama that the artifact holds."""
        return self._held[0]

    @cached_property
    def _held(self) -> tuple[ModelConfig, dict[str, torch.Tensor] | None]:
        """The weights are kept where they are the model's, for want of a checkpoint."""
        from harness.models.recognise import read_model

        config, weights = read_model(self.artifact, "forward")
        return config, None if self.checkpoint and self.params else weights

    @cached_property
    def config(self) -> ModelConfig:
        """The sizes of `params`; norm epsilon and attention scale as the artifact holds them."""
        if self.params is None:
            return self.held
        from harness.models.config import load_params

        return replace(
            load_params(self.params),
            norm_eps=self.held.norm_eps,
            attention_scale=self.held.attention_scale,
        )

    @cached_property
    def expected_weights(self) -> dict[str, torch.Tensor] | None:
        """The checkpoint's weights after the exporter's quantization, None without one."""
        if self.checkpoint is None or self.params is None:
            return None
        from harness.models.checkpoint import load_checkpoint
        from harness.models.quantize import exported_weights, read_scheme

        checkpoint = load_checkpoint(self.checkpoint, self.config)
        options, dtype = self.options, self.dtype
        quantization = options.quantization if options else read_scheme(self.artifact, dtype)
        return exported_weights(checkpoint, self.config, quantization)

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's: those expected, or else the artifact's own, dequantized to fp32."""
        weights = self.expected_weights or self._held[1]
        assert weights is not None, "one of the two is there"
        return weights

    @cached_property
    def oracle(self) -> Oracle:
        """Plain causal Llama in fp64, with the checkpoint's weights or else the artifact's."""
        return self._llama("fp64")

    @cached_property
    def eager(self) -> Oracle:
        """The same in the artifact's own dtype: its errors say what that precision costs."""
        return self._llama(self.dtype)

    def _llama(self, dtype: str) -> Oracle:
        import torch

        from harness.models.model import Oracle

        width = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}[dtype]
        return Oracle(self.config, self.weights, width)

    @cached_property
    def tables(self) -> Freqs:
        """The RoPE tables that the artifact carries, [positions, head_dim / 2]."""
        layout = self.session("mil:widen").layout
        return layout.freqs_cos, layout.freqs_sin

    @property
    def dtype(self) -> str:
        """The artifact's own float dtype, `fp16` or `fp32`: that of its RoPE tables."""
        dtype = str(getattr(self.artifact.constants.get("freqs_cos"), "dtype", "missing"))
        if dtype not in _DTYPES:
            raise ArtifactError(
                f"{self.artifact.path}: its constant 'freqs_cos' is {dtype}; a float16 or float32 "
                "table is needed"
            )
        return _DTYPES[dtype]

    def session(self, runtime: str) -> Session:
        """Return a session on a runtime, reset; methods are loaded once.

        Raises NotInstalledError when the runtime cannot be used here.
        """
        from harness.generate.session import open_session
        from harness.runtimes import get_runtime

        if runtime not in self._sessions:
            self._sessions[runtime] = open_session(self.artifact, get_runtime(runtime))
        self._sessions[runtime].reset()
        return self._sessions[runtime]
