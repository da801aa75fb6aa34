"""Which quantised weights can stay packed: those of two axes with codes of 4 or 8 bits."""

from __future__ import annotations

import numpy as np

from harness.mil.operation import Operation
from harness.mil.packed.forms import Blocks
from harness.mil.packed.weight import PackedWeight
from harness.mil.values import Constant

_FLIPS = {"INT4": 8, "UINT4": 0, "INT8": 128, "UINT8": 0}
_SMALL = 1 << 15  # elements up to which packing costs more time than it saves memory
_EXACT = ("FLOAT16", "FLOAT32")  # a scale times a code is exact in fp32, or rounded once


def packed(op: Operation) -> PackedWeight | None:
    """Return a ``constexpr_blockwise_shift_scale`` whose shapes fit as a packed weight.

    None where its codes, its scales or its shape are not of the kinds that stay packed.
    """
    given = [op.constants.get(name) for name in ("data", "scale", "offset")]
    data, scale, offset = (values[0] if values else None for values in given)
    if data is None or scale is None or (offset is None and "offset" in op.given):
        return None
    if not (_has_codes(data) and _scales(op, data, scale, offset)):
        return None
    op.read.update(("data", "scale", "offset"))
    scales = scale.array.astype(np.float32)
    offsets = np.zeros_like(scales) if offset is None else offset.array.astype(np.float32)
    codes, flip, is_paired = _codes(data, scales.shape[1])
    rounds = scale.type.dtype.name == "FLOAT16"
    return PackedWeight(Blocks(codes, scales, offsets, flip, rounds, is_paired), op.carrier)


def _has_codes(data: Constant) -> bool:
    return data.type.dtype.name in _FLIPS and len(data.type.shape) == 2 and data.type.count > _SMALL


def _scales(op: Operation, data: Constant, scale: Constant, offset: Constant | None) -> bool:
    sizes, blocks = data.type.shape, scale.array.shape
    return (
        scale.type.dtype == op.output.dtype
        and scale.type.dtype.name in _EXACT
        and len(blocks) == 2
        and all(
            block and size and size % block == 0 for size, block in zip(sizes, blocks, strict=True)
        )
        and (offset is None or (offset.array.dtype.kind in "iu" and offset.array.shape == blocks))
    )


def _codes(data: Constant, column_blocks: int) -> tuple[np.ndarray, int, bool]:
    """Return codes as bytes, what they are flipped by, and whether two share each byte.

    Where a block would end inside a byte, each code gets a byte of its own.
    """
    columns = data.type.shape[1]
    if data.type.dtype.bits == 8:
        return _bytes(data.array), _FLIPS[data.type.dtype.name], False
    if columns is None or columns % (2 * column_blocks):
        return _bytes(data.array), _FLIPS[data.type.dtype.name.replace("4", "8")], False
    return _bytes(data.stored.reshape(-1, columns // 2)), _FLIPS[data.type.dtype.name], True


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array, read-only as those of a file are: one type to compile for."""
    view = array.view(np.uint8)
    view.flags.writeable = False
    return view
