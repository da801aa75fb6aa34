"""`eager:fp16`, `eager:fp32`, `eager:fp64`: the artifact's own model in eager PyTorch.

This runtime reads the weights from the artifact and dequantizes them; it does not execute the
program. A difference from `mil` in the same precision comes from the exporter's changes to the
computation, and not to the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from harness.artifact import Artifact
from harness.models.model import StaticModel
from harness.models.recognise import read_model
from harness.pte import method_signature
from harness.runtimes.base import Method

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


class EagerRuntime:
    """Runs the model that an artifact holds, in one dtype throughout."""

    def __init__(self, option: str) -> None:
        self.name = f"eager:{option}"
        self._dtype = _DTYPES[option]
        self._weights: WeakKeyDictionary[Artifact, dict[str, Tensor]] = WeakKeyDictionary()

    def unavailable(self) -> str | None:
        """Return None: this runtime runs anywhere."""
        return None

    def load(self, artifact: Artifact, method: str) -> Method:
        """Load a method; raises ArtifactError when its programs hold no known model."""
        config, weights = read_model(artifact, method)
        model = StaticModel(config, self._shared(artifact, weights), self._dtype)
        return _EagerMethod(artifact, method, model)

    def _shared(self, artifact: Artifact, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights in this dtype; methods that hold equal ones share them."""
        known = self._weights.setdefault(artifact, {})
        for name, value in weights.items():
            converted = value.to(self._dtype)
            if name not in known or not torch.equal(known[name], converted):
                known[name] = converted
        return {name: known[name] for name in weights}


class _EagerMethod:
    """A method with the inputs and outputs of its program."""

    def __init__(self, artifact: Artifact, method: str, model: StaticModel) -> None:
        self.name = method
        self.inputs, self.outputs = method_signature(artifact, method)
        self._model = model

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._model(*tensors)
