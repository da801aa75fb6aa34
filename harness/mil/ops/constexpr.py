"""Operations whose result is a weight: computed once at load, rounded to the declared dtype."""

from __future__ import annotations

from harness.mil.operation import Operation, Run, operation


@operation("constexpr_blockwise_shift_scale", inputs=())
def blockwise_shift_scale(op: Operation) -> Run:
    """``scale * (data - offset)``, each scale and offset for a block of the data (iOS 18)."""
    data, scale, offset = op.weight("data"), op.weight("scale"), op.weight("offset")
    if data is None or scale is None:
        raise op.error("'data' and 'scale' must be constants")
    if data.dim() != scale.dim() or any(
        not s or d % s for d, s in zip(data.shape, scale.shape, strict=True)
    ):
        raise op.error(f"scale {list(scale.shape)} does not divide data {list(data.shape)}")
    if offset is not None and offset.shape != scale.shape:
        raise op.error(f"offset {list(offset.shape)} is not shaped like scale {list(scale.shape)}")
    carrier = op.policy.carrier(op.output.dtype)
    blocks = [n for d, s in zip(data.shape, scale.shape, strict=True) for n in (s, d // s)]
    per_block = [n for s in scale.shape for n in (s, 1)]
    values = data.reshape(blocks).to(carrier)
    if offset is not None:
        values = values - offset.reshape(per_block).to(carrier)
    values = values * scale.reshape(per_block).to(carrier)
    result = op.policy.constant(values.reshape(data.shape), op.output.dtype)
    return lambda: result
