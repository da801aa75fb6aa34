"""Operations whose result is a weight: computed once at load, rounded to the declared dtype.

Up to iOS 17 their operands stand as attributes, later as inputs; the iOS 18 ones may be made of
each other.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.quantization import along
from harness.mil.packed.pack import packed, packed_affine


@operation("constexpr_blockwise_shift_scale", inputs=())
def blockwise_shift_scale(op: Operation) -> Run:
    """`scale * (data - offset)`, each scale and offset for a block of the data (iOS 18).

    It stays packed where it can.
    """
    weight = packed(op)
    if weight is not None:
        return lambda: weight
    data = _weight(op, "data")
    result = _shift_scale(op, data, _weight(op, "scale"), op.weight("offset"), op.carrier)
    return lambda: op.policy.constant(result, op.output.dtype)


@operation("constexpr_affine_dequantize", inputs=())
def affine_dequantize(op: Operation) -> Run:
    """`scale * (data - zero point)`, one of each or one along `axis` (iOS 16).

    It stays packed where it can.
    """
    weight = packed_affine(op)
    if weight is not None:
        return lambda: weight
    data, axis = _weight(op, "quantized_data"), op.required("axis")
    zero = along(op, _weight(op, "zero_point").to(op.carrier), data, axis)
    scale = along(op, _weight(op, "scale").to(op.carrier), data, axis)
    return lambda: op.policy.constant((data.to(op.carrier) - zero) * scale, op.output.dtype)


@operation("constexpr_cast", inputs=())
def cast(op: Operation) -> Run:
    """Convert from FLOAT16 to FLOAT32."""
    source, dtype = _weight(op, "source_val"), op.required("output_dtype")
    if dtype != "fp32":
        raise op.error(f"output_dtype '{dtype}'; only fp32 is known")
    return lambda: op.policy.constant(source, op.output.dtype)


@operation("constexpr_lut_to_dense", inputs=())
def lut_to_dense(op: Operation) -> Run:
    """Replace indices by the entries of a look-up table.

    From iOS 18 on there is a table, of entries that may be vectors, for each block of indices.
    """
    indices, lut = _weight(op, "indices"), _weight(op, "lut")
    if op.since("CoreML8"):
        result = _looked_up(op, indices, lut, op.constant("vector_axis"))
    else:
        shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
        bits = (len(lut) - 1).bit_length()
        if len(lut) != 1 << bits or bits not in (1, 2, 4, 6, 8):
            raise op.error(f"a table of {len(lut)} entries; 2, 4, 16, 64 and 256 are known")
        result = lut[_unpacked(op, indices, bits, math.prod(shape))].reshape(shape)
    return lambda: op.policy.constant(result, op.output.dtype)


@operation("constexpr_lut_to_sparse", inputs=())
def lut_to_sparse(op: Operation) -> Run:
    """`lut_to_dense` of the elements under a mask: the mask of the result, and its elements."""
    mask, lut = _weight(op, "indices_mask") != 0, _weight(op, "lut")
    axis = op.constant("vector_axis")
    indices = _dense(op, _weight(op, "indices_nonzero_data"), mask)
    values = _looked_up(op, indices, lut, axis)
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], axis)
    return _sparse(op, mask, values)


@operation("constexpr_sparse_to_dense", inputs=())
def sparse_to_dense(op: Operation) -> Run:
    """Elements where a mask is set, zero elsewhere; up to iOS 17 the mask is packed bits."""
    data, mask = _weight(op, "nonzero_data"), _weight(op, "mask")
    if not op.since("CoreML8"):
        shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
        mask = _unpacked(op, mask, 1, math.prod(shape)).reshape(shape)
    result = _dense(op, data, mask != 0)
    return lambda: op.policy.constant(result, op.output.dtype)


@operation("constexpr_sparse_blockwise_shift_scale", inputs=())
def sparse_blockwise_shift_scale(op: Operation) -> Run:
    """`blockwise_shift_scale` of the elements under a mask: the mask, and the elements."""
    mask = _weight(op, "data_mask") != 0
    data = _dense(op, _weight(op, "nonzero_data"), mask)
    carrier = torch.float64 if op.policy.name == "double" else torch.float32
    values = _shift_scale(op, data, _weight(op, "scale"), op.weight("offset"), carrier)
    return _sparse(op, mask, values)


def _weight(op: Operation, name: str) -> Tensor:
    value = op.weight(name)
    if value is None:
        raise op.error(f"'{name}' must be given, and be a constant")
    return value


def _shift_scale(
    op: Operation, data: Tensor, scale: Tensor, offset: Tensor | None, carrier: torch.dtype
) -> Tensor:
    if data.dim() != scale.dim() or not _divides(scale.shape, data.shape):
        raise op.error(f"scale {list(scale.shape)} does not divide data {list(data.shape)}")
    if offset is not None and offset.shape != scale.shape:
        raise op.error(f"offset {list(offset.shape)} is not shaped like scale {list(scale.shape)}")
    blocks = [n for d, s in zip(data.shape, scale.shape, strict=True) for n in (s, d // s)]
    per_block = [n for s in scale.shape for n in (s, 1)]
    values = data.reshape(blocks).to(carrier)
    if offset is not None:
        values = values - offset.reshape(per_block).to(carrier)
    return (values * scale.reshape(per_block).to(carrier)).reshape(data.shape)


def _looked_up(op: Operation, indices: Tensor, lut: Tensor, axis: int | None) -> Tensor:
    """Look up indices [*D] in tables [*blocks, entries, vector]; vectors lie along `axis`."""
    rank, (entries, length) = indices.dim(), lut.shape[-2:]
    if lut.dim() != rank + 2 or not _divides(lut.shape[:rank], indices.shape):
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


def _divides(parts: torch.Size, whole: torch.Size) -> bool:
    return all(part and size % part == 0 for part, size in zip(parts, whole, strict=True))


def _dense(op: Operation, data: Tensor, mask: Tensor) -> Tensor:
    if data.dim() != 1 or int(mask.sum()) != len(data):
        raise op.error(f"{len(data)} elements for a mask that sets {int(mask.sum())}")
    dense = torch.zeros(mask.shape, dtype=data.dtype)
    dense[mask] = data
    return dense


def _sparse(op: Operation, mask: Tensor, values: Tensor) -> Run:
    """Return a mask and the elements under it, in the dtypes that the operation declares."""
    types = [getattr(output, "dtype", None) for output in op.outputs]
    if len(types) != 2 or None in types:
        raise op.error("two results, a mask and its elements, must be declared")
    return lambda: tuple(
        op.policy.constant(result, dtype)
        for result, dtype in zip((mask, values[mask]), types, strict=True)
        if dtype is not None
    )


def _unpacked(op: Operation, packed: Tensor, bits: int, count: int) -> Tensor:
    """Return unsigned integers of `bits` bits, packed from the lowest bit up, as int64."""
    if packed.dtype != torch.uint8 or packed.numel() != (count * bits + 7) // 8:
        raise op.error(f"{packed.numel()} bytes do not hold {count} integers of {bits} bits")
    stream = np.unpackbits(packed.numpy(), bitorder="little")[: count * bits]
    powers = 1 << np.arange(bits, dtype=np.int64)
    return torch.from_numpy((stream.reshape(-1, bits) * powers).sum(1))
