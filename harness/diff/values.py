"""MIL types and constants as short text that is equal when they are."""

from __future__ import annotations

import hashlib
from typing import Any

from harness.artifact.dtypes import MIL_TYPES

_LONGEST = 60  # characters of a constant shown as it is; a longer one is shown by its digest
_LONGEST_TYPE = 200
_WORD = 8  # hex digits of a digest: enough to tell two constants of one place apart


def type_text(value_type: Any) -> str:
    """Return a `ValueType` as text: `FLOAT16[1, 64]`, `state FLOAT16[8]`, `list of STRING[]`.

    One of hundreds of axes comes as a digest: it stands once for each operation that takes it.
    """
    text = _type_text(value_type)
    return text if len(text) <= _LONGEST_TYPE else f"type #{_digest(value_type)}"


def _type_text(value_type: Any) -> str:
    match value_type.WhichOneof("type"):
        case "tensorType":
            tensor = value_type.tensorType
            dtype = MIL_TYPES.get(tensor.dataType)
            return f"{dtype.name if dtype else tensor.dataType}{list(shape(tensor))}"
        case "stateType":
            return f"state {type_text(value_type.stateType.wrappedType)}"
        case "listType":
            return f"list of {type_text(value_type.listType.type)}"
        case "tupleType":
            return f"({', '.join(map(type_text, value_type.tupleType.types))})"
    return _digest(value_type)


def shape(tensor: Any) -> tuple[int | str, ...]:
    """Return the shape of a `TensorType`; "?" is a flexible dimension."""
    return tuple(
        d.constant.size if d.WhichOneof("dimension") == "constant" else "?"
        for d in tensor.dimensions
    )


def is_weight(value: Any) -> bool:
    """Whether a `Value` stands in the weight file."""
    kind: str | None = value.WhichOneof("value")
    return kind == "blobFileValue"


def value_text(value: Any) -> str:
    """Return a `Value` as text; of a weight, the type only: its content is compared elsewhere."""
    kind = type_text(value.type)
    if is_weight(value):
        return f"weight {kind}"
    immediate = value.immediateValue
    field = immediate.tensor.WhichOneof("value")
    if immediate.WhichOneof("value") == "tensor" and field not in (None, "bytes"):
        items = getattr(immediate.tensor, field).values
        if len(items) <= _LONGEST // 2:
            text = ", ".join(map(repr, items))
            if len(text) <= _LONGEST:
                return f"{kind} {text}"
    return f"{kind} #{_digest(immediate)}"


def _digest(message: Any) -> str:
    content = message.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:_WORD]
