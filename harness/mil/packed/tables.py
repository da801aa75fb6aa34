"""The sixteen values of a 4-bit code in each row, as integers of 16 bits and what 1 stands for.

A weight is `scale * (code - offset)`, rounded to its dtype. In fp16 every such value is a
multiple of the scale's unit in the last place, at most 30 * 2**11 of them: where that does not hold
(an overflow, say), there are no tables.
"""

from __future__ import annotations

import numpy as np

LEVELS = np.arange(16)
UNITS = 65536  # in which the kernels give an integer: they leave it in the upper half of 32 bits


def signed_codes(flip: int) -> np.ndarray:
    """Return the numbers that the codes 0 to 15 stand for, as int64."""
    return (LEVELS ^ flip) - flip


def integer_tables(
    scale: np.ndarray, offset: np.ndarray, flip: int, rounds: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return tables uint8 [n, 32], 16 low bytes and 16 high ones, and units fp32 [n] over `UNITS`.

    `scale` and `offset` are fp32 [n]; `rounds` says that the weights are fp16. None where a
    value is not exactly an integer of 16 bits times the unit.
    """
    steps = signed_codes(flip) - offset[:, None]  # [n, 16]
    if rounds:
        with np.errstate(over="ignore", invalid="ignore"):
            values = (steps.astype(np.float32) * scale[:, None]).astype(np.float16)
            unit = np.spacing(np.abs(scale).astype(np.float16)).astype(np.float32)
            integers = values.astype(np.float32) / unit[:, None]
    else:
        unit, integers = scale, steps.astype(np.float32)  # a rounding of fp32 less than a product
    if not (np.abs(integers) < 1 << 15).all() or (integers != np.rint(integers)).any():
        return None
    pairs = integers.astype("<i2")[..., None].view(np.uint8)  # [n, 16, 2]
    tables = np.ascontiguousarray(pairs.transpose(0, 2, 1)).reshape(len(scale), 32)
    return tables, (unit / UNITS).astype(np.float32)
