"""What predicts: a function of an ML Program, Core ML's own box suppression, a pipeline of these.

A predictor takes the values of its inputs by name, as a caller of Core ML gives them, and returns
its outputs likewise. In a pipeline, a model finds its inputs among the pipeline's and the outputs
of the models before it. Sources: `Model.proto` and `NonMaximumSuppression.proto` of coremltools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from harness.artifact import Package
from harness.artifact.files import MAX_ELEMENTS
from harness.artifact.proto import checked_program, feature_types
from harness.errors import ArtifactError, HarnessError
from harness.mil import Policy, State, load_function
from harness.mil.ops.tensor_operation import pick_boxes
from harness.mil.types import allowed_shape
from harness.shim.values import (
    Feature,
    python_of_outputs,
    read_signature,
    report_not_finite,
    tensors_of_inputs,
)

if TYPE_CHECKING:
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType

_SUPPRESSION = "nonMaximumSuppression"


class Predictor(Protocol):
    """A loaded model; `states` are the features of its states by name."""

    states: dict[str, Feature]

    def predict(self, values: Mapping[str, Any], state: State | None) -> dict[str, Any]:
        """Predict once; raises HarnessError that names the model, its input or operation."""

    def new_state(self) -> State:
        """Return a state for predictions, all zeros."""


def load_predictor(package: Package, function: str, policy: Policy) -> Predictor:
    """Load a function of a model, a pipeline or a box suppression.

    Raises ArtifactError for a model that cannot be executed, or a pipeline without models.
    """
    if package.stages:
        return _Pipeline(package, policy)
    if package.specification.WhichOneof("Type") == _SUPPRESSION:
        return _Suppression(package)
    return _Program(package, function or package.default_function, policy)


def programs_in(package: Package) -> Iterator[Package]:
    """Yield the package of each ML Program: the package itself, or those of a pipeline in order."""
    for stage in package.stages:
        yield from programs_in(stage)
    if package.specification.WhichOneof("Type") == "mlProgram":
        yield package


def check_executable(package: Package) -> None:
    """Raise ArtifactError unless a package holds ML Programs and box suppression only."""
    for stage in package.stages:
        check_executable(stage)
    if not package.stages and package.specification.WhichOneof("Type") != _SUPPRESSION:
        checked_program(package.specification, package.what)


class _Program:
    """A function of an ML Program."""

    def __init__(self, package: Package, function: str, policy: Policy) -> None:
        self._function = load_function(package, function, policy, stateful=True)
        self._signature = read_signature(package, function)
        self._where = f"{package.what}, function '{function}'"
        self._reported: set[str] = set()
        self.states = self._signature.states
        self.new_state = self._function.new_state

    def predict(self, values: Mapping[str, Any], state: State | None) -> dict[str, Any]:
        inputs = tensors_of_inputs(self._signature, values, self._where)
        with _failing_as_core_ml_does():
            results = self._function(inputs, state)
        report_not_finite(self._where, results, self._reported)
        return python_of_outputs(self._signature, results, self._where)


class _Pipeline:
    """Models that run one after another; a pipeline has no states."""

    def __init__(self, package: Package, policy: Policy) -> None:
        self._what = package.what
        self._stages = [load_predictor(stage, "", policy) for stage in package.stages]
        for number, stage in enumerate(self._stages, 1):
            if stage.states:
                raise HarnessError(
                    f"{package.what}: model {number} of its pipeline has states "
                    f"({', '.join(stage.states)}), and a pipeline has none: use the model alone"
                )
        self._outputs = [feature.name for feature in package.specification.description.output]
        self._policy = policy
        self.states: dict[str, Feature] = {}

    def new_state(self) -> State:
        return State({}, self._policy)

    def predict(self, values: Mapping[str, Any], state: State | None) -> dict[str, Any]:
        known = dict(values)
        for stage in self._stages:
            known |= stage.predict(known, None)
        missing = [name for name in self._outputs if name not in known]
        if missing:
            raise HarnessError(f"{self._what}: no model of the pipeline returns '{missing[0]}'")
        return {name: known[name] for name in self._outputs}


class _Suppression:
    """Core ML's own model that removes the boxes which overlap a better one.

    It takes confidences [boxes, classes] and coordinates [boxes, 4] (center x, center y, width,
    height), and returns the rows that it keeps, the best first. An output of described shape is cut
    or filled with zeros.
    """

    def __init__(self, package: Package) -> None:
        self._what = package.what
        self._settings = package.specification.nonMaximumSuppression
        self._outputs = {f.name: f.type for f in package.specification.description.output}
        self.states: dict[str, Feature] = {}

    def new_state(self) -> State:
        raise HarnessError(f"{self._what}: has no states")

    def predict(self, values: Mapping[str, Any], state: State | None) -> dict[str, Any]:
        settings = self._settings
        names = settings.confidenceInputFeatureName, settings.coordinatesInputFeatureName
        marks, boxes = (self._rows(values, name) for name in names)
        if len(marks) != len(boxes) or not marks.shape[1] or boxes.shape[1] != 4:
            shapes = f"{list(marks.shape)} and {list(boxes.shape)}"
            raise HarnessError(
                f"{self._what}: '{names[0]}' and '{names[1]}' have shapes {shapes}; give "
                "[boxes, classes], with at least one class, and [boxes, 4]"
            )
        overlap = self._number(values, settings.iouThresholdInputFeatureName, settings.iouThreshold)
        least = self._number(
            values, settings.confidenceThresholdInputFeatureName, settings.confidenceThreshold
        )
        given = settings.confidenceOutputFeatureName, settings.coordinatesOutputFeatureName
        limits = [self._limits(name) for name in given]
        fewest, largest = max(low for low, _ in limits), min(high for _, high in limits)
        best, classes = marks.max(1)
        scores = best.tolist()
        order = torch.argsort(best, descending=True, stable=True).tolist()
        candidates = [index for index in order if scores[index] >= least]
        by_class = classes.tolist() if settings.pickTop.perClass else None
        max_boxes = int(min(len(candidates), largest))
        kept = pick_boxes(boxes, candidates, by_class, overlap, max_boxes)
        found = zip(given, (marks[kept], boxes[kept]), strict=True)
        return {name: self._given(name, rows, fewest) for name, rows in found}

    def _rows(self, values: Mapping[str, Any], name: str) -> torch.Tensor:
        value = values.get(name)
        if (
            not isinstance(value, np.ndarray)
            or value.ndim < 2
            or value.size != np.prod(value.shape[-2:])
            or value.dtype.kind not in "fiu"
        ):
            have = "no array"
            if isinstance(value, np.ndarray):
                have = f"{value.dtype}{list(value.shape)}"
            raise HarnessError(
                f"{self._what}: input '{name}' is {have}; give an array of numbers with two axes, "
                "the first of boxes"
            )
        return torch.from_numpy(value.reshape(value.shape[-2:]).astype(np.float64))

    def _number(self, values: Mapping[str, Any], name: str, default: float) -> float:
        if not name or name not in values:
            return default
        value = np.asarray(values[name])
        if value.size != 1 or value.dtype.kind not in "fiu":
            raise HarnessError(f"{self._what}: input '{name}' is not a number")
        return float(value.reshape(()))

    def _limits(self, name: str) -> tuple[int, float]:
        """Return the least and the largest number of rows that an output may have."""
        array = self._array(name)
        if array is None:
            return 0, float("inf")
        allowed = allowed_shape(array)
        if allowed is not None and allowed.ranges:
            low, high = allowed.ranges[0]
            return low, float("inf") if high is None else high
        if not array.shape:
            return 0, float("inf")
        if array.shape[0] < 0:
            shape = list(array.shape)
            raise ArtifactError(f"{self._what}: output '{name}' has a negative size in {shape}")
        return array.shape[0], array.shape[0]

    def _given(self, name: str, rows: torch.Tensor, fewest: int) -> np.ndarray:
        if fewest * rows.shape[1] > MAX_ELEMENTS:
            raise ArtifactError(
                f"{self._what}: output '{name}' is described with at least {fewest} boxes; at most "
                f"{MAX_ELEMENTS // rows.shape[1]} are allowed"
            )
        empty = rows.new_zeros(max(0, fewest - len(rows)), rows.shape[1])
        array = self._array(name)
        dtype = feature_types().get(array.dataType, "float64") if array else "float64"
        return torch.cat([rows, empty]).numpy().astype(dtype)

    def _array(self, name: str) -> ArrayFeatureType | None:
        kind = self._outputs.get(name)
        return kind.multiArrayType if kind and kind.WhichOneof("Type") == "multiArrayType" else None


@contextmanager
def _failing_as_core_ml_does() -> Iterator[None]:
    """Begin an error's message as Core ML does, because scripts look for these words."""
    try:
        yield
    except HarnessError as error:
        problem = f"Unable to compute the prediction using ML Program: {error}"
        raise HarnessError(problem) from error
