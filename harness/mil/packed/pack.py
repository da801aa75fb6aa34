"""Decides which quantized weights stay packed: those of two axes with codes of 4 or 8 bits."""

from __future__ import annotations

import numpy as np

from harness.mil.operation import Operation
from harness.mil.packed import PackedWeight
from harness.mil.packed.layouts import Blocks
from harness.mil.values import Constant

_SIGN_BITS = {"INT4": 8, "UINT4": 0, "INT8": 128, "UINT8": 0}
_SMALL = 1 << 15  # elements up to which packing costs more time than it saves memory
_NARROW = 16  # columns of a block below which the compiler does not make vector code
_EXACT = ("FLOAT16", "FLOAT32")  # scale * code is exact in fp32, or rounded once


def packed(op: Operation) -> PackedWeight | None:
    """Return the result of a `constexpr_blockwise_shift_scale` as a packed weight.

    Return None if its codes, its scales or its shape cannot stay packed.
    """
    data, scale, offset = (_constant(op, name) for name in ("data", "scale", "offset"))
    if data is None or scale is None or (offset is None and "offset" in op.given):
        return None
    offsets = None if offset is None else offset.array
    return _weight(op, data, scale.array, offsets, scale.type.dtype.name)


def packed_affine(op: Operation) -> PackedWeight | None:
    """Return the result of a `constexpr_affine_dequantize` as a packed weight, or None.

    A scale and a zero point for each row make blocks of one row. A scale for each column would make
    blocks that are too narrow to multiply fast.
    """
    data, scale, zero = (_constant(op, n) for n in ("quantized_data", "scale", "zero_point"))
    if data is None or scale is None or zero is None or len(data.type.shape) != 2:
        return None
    of_rows = op.required("axis") in (0, -2)
    allowed = [(), data.type.shape[:1]] if of_rows else [()]
    if scale.array.shape not in allowed or zero.array.shape not in allowed:
        return None
    arrays = (constant.array.reshape(-1, 1) for constant in (scale, zero))
    scales, zeros = np.broadcast_arrays(*arrays)
    return _weight(op, data, scales, zeros, scale.type.dtype.name)


def _constant(op: Operation, name: str) -> Constant | None:
    values = op.constants.get(name)
    return values[0] if values else None


def _weight(
    op: Operation, data: Constant, scale: np.ndarray, offset: np.ndarray | None, dtype: str
) -> PackedWeight | None:
    """Return a packed weight of codes, with a scale and an offset for each block.

    `dtype` is the dtype of the scales in the program. Return None if the shapes or dtypes do not
    fit.
    """
    if not (_has_codes(data) and _fits(op, data, scale, offset, dtype)):
        return None
    op.read.update(op.given)
    scales = scale.astype(np.float32)
    offsets = np.zeros_like(scales) if offset is None else offset.astype(np.float32)
    codes, sign_bit, is_paired = _codes(data, scales.shape[1])
    blocks = Blocks(codes, scales, offsets, sign_bit, dtype == "FLOAT16", is_paired)
    return PackedWeight(blocks, op.carrier)


def _has_codes(data: Constant) -> bool:
    return (
        data.type.dtype.name in _SIGN_BITS
        and len(data.type.shape) == 2
        and data.type.count > _SMALL
    )


def _fits(
    op: Operation, data: Constant, scale: np.ndarray, offset: np.ndarray | None, dtype: str
) -> bool:
    sizes = data.type.shape
    return (
        dtype == op.output.dtype.name
        and dtype in _EXACT
        and scale.ndim == 2
        and all(
            block and size and size % block == 0
            for size, block in zip(sizes, scale.shape, strict=True)
        )
        and (sizes[1] or 0) // scale.shape[1] >= _NARROW
        and (offset is None or (offset.dtype.kind in "iu" and offset.shape == scale.shape))
    )


def _codes(data: Constant, column_blocks: int) -> tuple[np.ndarray, int, bool]:
    """Return codes as bytes, their sign bit (0: unsigned), and whether two share each byte.

    If a block would end inside a byte, each code gets a byte of its own.
    """
    columns = data.type.shape[1]
    if data.type.dtype.bits == 8:
        return _bytes(data.array), _SIGN_BITS[data.type.dtype.name], False
    if columns is None or columns % (2 * column_blocks):
        return _bytes(data.array), _SIGN_BITS[data.type.dtype.name.replace("4", "8")], False
    return _bytes(data.stored.reshape(-1, columns // 2)), _SIGN_BITS[data.type.dtype.name], True


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array, read-only like a file's, since kernels compile for one type."""
    view = array.view(np.uint8)
    view.flags.writeable = False
    return view
