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
from harness.mil.packed.pack import packed_affine


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
