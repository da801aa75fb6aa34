"""Weights that are computed once at load: the operations of iOS 16, some extended by iOS 18.

Up to iOS 17 their operands are attributes, from iOS 18 on they are inputs. The results are rounded
to the declared dtype.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.quantization_ops import along
from harness.mil.packed import PackedWeight
from harness.mil.packed.layouts import Blocks
from harness.mil.values import Constant


@operation("constexpr_affine_dequantize", inputs=())
def affine_dequantize(op: Operation) -> Run:
    """Compute `scale * (data - zero point)`, both scalars or vectors along `axis` (iOS 16).

    The result stays packed if possible.
    """
    weight = packed_affine(op)
    if weight is not None:
        return lambda: weight
    data, axis = weight_of(op, "quantized_data"), op.required("axis")
    zero = along(op, weight_of(op, "zero_point").to(op.carrier), data, axis)
    scale = along(op, weight_of(op, "scale").to(op.carrier), data, axis)
    return lambda: op.policy.constant((data.to(op.carrier) - zero) * scale, op.output.dtype)


@operation("constexpr_cast", inputs=())
def cast(op: Operation) -> Run:
    """Convert from FLOAT16 to FLOAT32."""
    source, dtype = weight_of(op, "source_val"), op.required("output_dtype")
    if dtype != "fp32":
        raise op.error(f"output_dtype '{dtype}'; only fp32 is known")
    return lambda: op.policy.constant(source, op.output.dtype)


@operation("constexpr_lut_to_dense", inputs=())
def lut_to_dense(op: Operation) -> Run:
    """Replace indices by the entries of a look-up table.

    From iOS 18 on each block of indices has a table, whose entries may be vectors.
    """
    indices, lut = weight_of(op, "indices"), weight_of(op, "lut")
    if op.since("CoreML8"):
        result = looked_up(op, indices, lut, op.constant("vector_axis"))
    else:
        shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
        bits = (len(lut) - 1).bit_length()
        if len(lut) != 1 << bits or bits not in (1, 2, 4, 6, 8):
            raise op.error(f"a table of {len(lut)} entries; 2, 4, 16, 64 and 256 are known")
        result = lut[_unpacked(op, indices, bits, math.prod(shape))].reshape(shape)
    return lambda: op.policy.constant(result, op.output.dtype)


@operation("constexpr_sparse_to_dense", inputs=())
def sparse_to_dense(op: Operation) -> Run:
    """Put elements where a mask is set, zero elsewhere; up to iOS 17 the mask is packed bits."""
    data, mask = weight_of(op, "nonzero_data"), weight_of(op, "mask")
    if not op.since("CoreML8"):
        shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
        mask = _unpacked(op, mask, 1, math.prod(shape)).reshape(shape)
    result = dense(op, data, mask != 0)
    return lambda: op.policy.constant(result, op.output.dtype)


def weight_of(op: Operation, name: str) -> Tensor:
    """Return an operand; raises ArtifactError when it is missing or not a constant."""
    value = op.weight(name)
    if value is None:
        raise op.error(f"'{name}' must be given as a constant")
    return value


def looked_up(op: Operation, indices: Tensor, lut: Tensor, axis: int | None) -> Tensor:
    """Look up indices [*D] in tables [*blocks, entries, vector]; vectors lie along `axis`."""
    rank, (entries, length) = indices.dim(), lut.shape[-2:]
    if lut.dim() != rank + 2 or not divides(lut.shape[:rank], indices.shape):
        raise op.error(f"tables {list(lut.shape)} do not divide indices {list(indices.shape)}")
    if length > 1 and axis is None:
        raise op.error("parameter 'vector_axis' is missing")
    if indices.numel() and int(indices.max()) >= entries:
        raise op.error(f"index {int(indices.max())} in tables of {entries} entries")
    op.check_count(indices.numel() * length, "indices")
    sizes = zip(indices.shape, lut.shape, strict=False)
    table = torch.zeros(indices.shape, dtype=torch.long)  # the number of each index's table
    for place, (size, blocks) in enumerate(sizes):
        shape = [-1 if other == place else 1 for other in range(rank)]
        table = table * blocks + (torch.arange(size) // (size // blocks)).reshape(shape)
    values = lut.reshape(-1, entries, length)[table, indices.long()]  # [*D, vector]
    if length == 1 or axis is None:
        return values[..., 0]
    return values.movedim(-1, axis % rank + 1).flatten(axis % rank, axis % rank + 1)


def divides(parts: torch.Size, whole: torch.Size) -> bool:
    """Return whether a shape of blocks `parts` divides the shape `whole`, axis by axis."""
    return all(part and size % part == 0 for part, size in zip(parts, whole, strict=True))


def dense(op: Operation, data: Tensor, mask: Tensor) -> Tensor:
    """Return a tensor shaped like `mask`: `data` [N] where it is set, zero elsewhere.

    Raises ArtifactError unless the mask sets N elements.
    """
    if data.dim() != 1 or int(mask.sum()) != len(data):
        raise op.error(f"{len(data)} elements for a mask that sets {int(mask.sum())}")
    dense = torch.zeros(mask.shape, dtype=data.dtype)
    dense[mask] = data
    return dense


def _unpacked(op: Operation, packed: Tensor, bits: int, count: int) -> Tensor:
    """Return unsigned integers of `bits` bits, packed from the lowest bit up, as int64."""
    if packed.dtype != torch.uint8 or packed.numel() != (count * bits + 7) // 8:
        raise op.error(f"{packed.numel()} bytes do not hold {count} integers of {bits} bits")
    stream = np.unpackbits(packed.numpy(), bitorder="little")[: count * bits]
    powers = 1 << np.arange(bits, dtype=np.int64)
    return torch.from_numpy((stream.reshape(-1, bits) * powers).sum(1))


# --- weights that stay packed: those of two axes with codes of 4 or 8 bits

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
