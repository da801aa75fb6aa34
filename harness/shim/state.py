"""The state of a model, as `MLModel.make_state()` wraps it."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.mil import State
from harness.shim.features import ArrayFeature, Feature
from harness.shim.refusal import as_runtime_error
from harness.shim.values import array_of_tensor, tensor_of_array


class StateProxy:
    """A tensor for each state, zero at first; predictions that are given it continue from it."""

    def __init__(self, state: State, features: dict[str, Feature], where: str) -> None:
        self.state = state
        self._features = features
        self._where = where

    def read_state(self, name: str) -> np.ndarray:
        """Return a copy of a state, FLOAT16 as float32; RuntimeError when there is none."""
        with as_runtime_error():
            tensor = self.state.read(name)
        feature = self._features.get(name)
        dtype = feature.dtype if isinstance(feature, ArrayFeature) else "float32"
        return array_of_tensor(tensor, dtype)

    def write_state(self, name: str, value: Any) -> None:
        """Replace a state; RuntimeError for an unknown name, or a value of another shape."""
        with as_runtime_error():
            self.state.write(name, tensor_of_array(value, name, self._where))
