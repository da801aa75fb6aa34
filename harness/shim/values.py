"""Values of a prediction: from Python to tensors, and results back, as Core ML's bindings do.

Arrays of float32, float64, int32 and int8 are taken, and converted to what the model describes.
FLOAT16 results come back as float32, and a scalar as shape (1,). Source: coremltools'
`CoreMLPythonArray.mm` and `CoreMLPythonUtils.mm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.errors import HarnessError
from harness.shim.features import ArrayFeature, Feature, ImageFeature, PlainFeature, Signature
from harness.shim.images import image_of_tensor, tensor_of_image

_TAKEN = ("float32", "float64", "int32", "int8")
_GIVEN = {"float16": "float32"}  # numpy in the native module has no half precision


def tensors_of_inputs(
    signature: Signature, values: Mapping[str, Any], where: str
) -> dict[str, torch.Tensor]:
    """Return every input of a function as a tensor, those that may be left out filled in.

    Values that are not inputs are left alone, as Core ML does; shapes of arrays are checked where
    the function is called. Raises HarnessError, naming the input and what is allowed.
    """
    return {
        name: _entered(feature, values[name], where) if name in values else _filled(feature, where)
        for name, feature in signature.inputs.items()
    }


def python_of_outputs(
    signature: Signature, results: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return a function's results as Core ML's bindings give them, by name."""
    missing = signature.outputs.keys() - results.keys()
    if missing:
        raise HarnessError(f"{where}: describes output '{min(missing)}', which it does not give")
    return {
        name: _left(feature, results[name], where) for name, feature in signature.outputs.items()
    }


def array_of_tensor(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """Return a copy of a tensor as the array of a described dtype."""
    array = tensor.numpy().astype(_GIVEN.get(dtype, dtype))
    return array.reshape(1) if array.shape == () else array


def tensor_of_array(value: Any, name: str, where: str) -> torch.Tensor:
    """Return a copy of an array as a tensor; a scalar's shape becomes (1,).

    Raises HarnessError for what Core ML's bindings do not take.
    """
    if not isinstance(value, np.ndarray):
        raise HarnessError(
            f"{where}: '{name}' is a {type(value).__name__}; give a numpy array of "
            f"{', '.join(_TAKEN)}"
        )
    if value.dtype.name not in _TAKEN:
        raise HarnessError(
            f"{where}: '{name}' is an array of {value.dtype}; Core ML takes {', '.join(_TAKEN)}: "
            "cast it with .astype"
        )
    return torch.from_numpy(np.array(value if value.shape else value.reshape(1)))


def _entered(feature: Feature, value: Any, where: str) -> torch.Tensor:
    if isinstance(feature, ImageFeature):
        return tensor_of_image(feature, value, where)
    if isinstance(feature, PlainFeature):
        raise HarnessError(f"{where}: input '{feature.name}' is no array and no image")
    tensor = tensor_of_array(value, feature.name, where)
    # What the program itself declares may be fp16: only the kind, float or integer, is fixed here.
    wanted: torch.dtype = getattr(torch, feature.dtype)
    return tensor if wanted.is_floating_point else tensor.to(wanted)


def _filled(feature: Feature, where: str) -> torch.Tensor:
    if isinstance(feature, ArrayFeature) and feature.filler is not None:
        return torch.full(feature.shape, feature.filler, dtype=getattr(torch, feature.dtype))
    what = (
        f"an array, by default of shape {list(feature.shape)}"
        if isinstance(feature, ArrayFeature)
        else "an image"
    )
    raise HarnessError(f"{where}: input '{feature.name}' is missing; it is {what}")


def _left(feature: Feature, result: Any, where: str) -> Any:
    if isinstance(feature, PlainFeature):
        return result
    if not isinstance(result, torch.Tensor):
        raise HarnessError(f"{where}: output '{feature.name}' is no tensor")
    if isinstance(feature, ImageFeature):
        return image_of_tensor(feature, result, where)
    return array_of_tensor(result, feature.dtype)
