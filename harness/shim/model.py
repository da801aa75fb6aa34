"""The classes of `coremltools.libcoremlpython`: a loaded model and its state.

`MLModel` and `CompiledMLModel` of coremltools call them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.child import POLICY_VARIABLE
from harness.files import folder_of
from harness.mil import State, get_policy
from harness.shim.asset import (
    COMPILED,
    ModelAssetProxy,
    as_runtime_error,
    asset_of_memory,
    asset_of_path,
    compile_model,
    open_compiled,
    open_model,
    write_compiled,
)
from harness.shim.predictors import load_predictor, programs_in
from harness.shim.structure import (
    NEWEST_VERSION,
    ComputePlanProxy,
    CPUDeviceProxy,
    GPUDeviceProxy,
    LayerProxy,
    NeuralEngineDeviceProxy,
    OperationProxy,
    devices,
    model_structure,
    with_lowest_version,
)
from harness.shim.values import ArrayFeature, Feature, array_of_tensor, tensor_of_array


class StateProxy:
    """A tensor for each state, zero at first; a prediction with this state reads and changes it."""

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


class ModelProxy:
    """One function of a model, which our executor runs on the CPU for any compute units.

    FLOAT16 is rounded after every operation, as on a device, unless the environment variable
    HARNESS_POLICY names another number policy. Every error is a RuntimeError.
    """

    def __init__(
        self,
        path: str,
        compute_units: str,
        function_name: str,
        optimization_hints: Mapping[str, str],
        asset: ModelAssetProxy | None = None,
    ) -> None:
        del compute_units, optimization_hints  # they change place and speed, not results
        start = time.perf_counter_ns()
        self._path = path
        self._compiled: Path | None = None
        self._last_prediction: int | None = None
        with as_runtime_error():
            self._package = open_model(path) if asset is None else asset.package
            policy = get_policy(os.environ.get(POLICY_VARIABLE, "strict"))
            self._predictor = load_predictor(self._package, function_name, policy)
            self._name = function_name
        self._load_duration = time.perf_counter_ns() - start

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the states."""
        return tuple(self._predictor.states)

    @property
    def operations(self) -> list[str]:
        """The types of the function's operations, without those of nested blocks.

        A pipeline's are those of its models, one after another.
        """
        programs = list(programs_in(self._package))
        names = [self._name or program.default_function for program in programs]
        return [
            one.type
            for program, name in zip(programs, names, strict=True)
            for one in program.operations(name).operations
        ]

    def predict(self, values: Mapping[str, Any], state: StateProxy | None = None) -> dict[str, Any]:
        """Predict once; the prediction reads and changes the state."""
        with as_runtime_error():
            start = time.perf_counter_ns()
            results = self._predictor.predict(values, None if state is None else state.state)
            self._last_prediction = time.perf_counter_ns() - start
            return results

    def batchPredict(self, batch: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predict once for each of several inputs."""
        start = time.perf_counter_ns()
        results = [self.predict(values) for values in batch]
        self._last_prediction = time.perf_counter_ns() - start
        return results

    def newState(self) -> StateProxy:
        """Return a state of this function, all zeros."""
        with as_runtime_error():
            state = self._predictor.new_state()
        return StateProxy(state, self._predictor.states, self._package.what)

    def get_compiled_model_path(self) -> str:
        """Return the folder of a compiled model, which is deleted with this object."""
        if self._path.rstrip("/").endswith(COMPILED):
            return self._path
        if self._compiled is None:
            folder = folder_of(self, "harness-compiled")
            with as_runtime_error():
                self._compiled = write_compiled(self._package, folder, Path(self._path))
        return str(self._compiled)

    def get_load_duration_in_nano_seconds(self) -> int:
        """Return the duration of loading."""
        return self._load_duration

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        """Return the duration of the last prediction, None before the first."""
        return self._last_prediction

    @staticmethod
    def maximum_supported_specification_version() -> int:
        """Return the newest specification version that the stand-in can load."""
        return NEWEST_VERSION

    @staticmethod
    def auto_set_specification_version(model: bytes) -> bytes:
        """Return a model with the lowest specification version that supports all its features."""
        with as_runtime_error():
            return with_lowest_version(model)

    @staticmethod
    def compileModel(path: str) -> str:
        """Compile a model; return the folder, which the caller deletes."""
        with as_runtime_error():
            return compile_model(path)

    @staticmethod
    def create_model_asset_from_path(path: str) -> Any:
        """Return the `MLModelAsset` of a compiled model."""
        return _wrapped(asset_of_path(path))

    @staticmethod
    def create_model_asset_from_memory(model: bytes, weights: Mapping[str, bytes]) -> Any:
        """Return the `MLModelAsset` of a specification and its weight files."""
        return _wrapped(asset_of_memory(model, weights))

    @staticmethod
    def get_available_compute_devices() -> list[Any]:
        """Return the devices that predictions can use: the CPU."""
        return devices()

    @staticmethod
    def get_all_compute_devices() -> list[Any]:
        """Return all devices: the CPU."""
        return devices()

    @staticmethod
    def get_model_structure(path: str) -> Any:
        """Return the `MLModelStructure` of a compiled model."""
        with as_runtime_error():
            return model_structure(open_compiled(path))

    @staticmethod
    def get_compute_plan(path: str, compute_units: str) -> Any:
        """Return the `MLComputePlan` of a compiled model: every operation on the CPU."""
        from coremltools.models.compute_plan import MLComputePlan

        with as_runtime_error():
            return MLComputePlan(ComputePlanProxy(open_compiled(path), compute_units))


def _wrapped(asset: ModelAssetProxy) -> Any:
    from coremltools.models.model import MLModelAsset

    return MLModelAsset(asset)


NATIVE_NAMES = {
    "_MLModelProxy": ModelProxy,
    "_MLModelAssetProxy": ModelAssetProxy,
    "_MLComputePlanProxy": ComputePlanProxy,
    "_MLCPUComputeDeviceProxy": CPUDeviceProxy,
    "_MLGPUComputeDeviceProxy": GPUDeviceProxy,
    "_MLNeuralEngineComputeDeviceProxy": NeuralEngineDeviceProxy,
    "_State": StateProxy,
    "_MLModelStructureProgramOperationProxy": OperationProxy,
    "_MLModelStructureNeuralNetworkLayerProxy": LayerProxy,
}
