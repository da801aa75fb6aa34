"""Specification versions: the newest there is, and the lowest that a model needs.

Source: coremltools' `Model.proto`, which says what each version brought.
"""

from __future__ import annotations

from typing import Any

from harness.artifact import ArtifactError
from harness.artifact.proto import parse_model

NEWEST = 10
_OPSETS = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}
_FLOAT16, _INT8 = 65552, 131080  # arrays that a caller may pass from versions 7 and 10 on
_STATES = _SEVERAL_FUNCTIONS = 9


def lowered(specification: bytes) -> bytes:
    """Return a model with the lowest version that has its opset, arrays, states and functions.

    Raises ArtifactError for what is not an ML Program of a known opset.
    """
    if not isinstance(specification, bytes):
        raise TypeError(f"a model is bytes, not {type(specification).__name__}")
    model = parse_model(memoryview(specification), "the model in memory")
    model.specificationVersion = max(_needs(model))
    data: bytes = model.SerializeToString()
    return data


def _needs(model: Any) -> list[int]:
    opsets = [function.opset for function in model.mlProgram.functions.values()]
    unknown = set(opsets) - _OPSETS.keys()
    if unknown or not opsets:
        raise ArtifactError(f"the model in memory: no known opset ({', '.join(unknown) or 'none'})")
    needs = [_OPSETS[opset] for opset in opsets]
    if model.description.functions:
        needs.append(_SEVERAL_FUNCTIONS)
    for description in (model.description, *model.description.functions):
        if description.state:
            needs.append(_STATES)
        for feature in (*description.input, *description.output):
            array = feature.type.multiArrayType
            needs += [7] * (array.dataType == _FLOAT16) + [NEWEST] * (array.dataType == _INT8)
    return needs
