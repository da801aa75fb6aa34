"""The two layouts of a packed weight; each has its own order of columns.

Both compute `products` with x, which is contiguous fp32 [m, columns]. `Blocks` can also `expand`
rows to fp32; `order` is the order of their columns, None for the weight's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.mil.packed import integers, kernels, vector
from harness.mil.packed.pool import pool

FEW_ROWS = 3  # rows of x up to which decoding the weight again for each row is fastest
_LEVELS = np.arange(16)
_UNITS = 65536  # a lookup returns an integer times this, in the upper half of 32 bits


@dataclass(frozen=True)
class Blocks:
    """Codes with a scale and an offset for each block of rows and columns.

    `codes` are uint8 [rows, columns], or [rows, columns / 2] if two share a byte (low half first);
    `scale` and `offset` are fp32 [row blocks, column blocks]. `sign_bit` is 8 or 128 for signed
    codes of 4 or 8 bits, 0 for unsigned ones; `rounds` is true for fp16 values.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    sign_bit: int
    rounds: bool
    is_paired: bool

    @property
    def columns(self) -> int:
        """The number of the weight's columns; two may share a byte."""
        width: int = self.codes.shape[1]
        return 2 * width if self.is_paired else width

    @cached_property
    def order(self) -> Tensor | None:
        """The order of expanded columns: the low codes of all bytes first, then the high ones."""
        if not self.is_paired:
            return None
        return torch.arange(self.columns).reshape(-1, 2).T.reshape(-1)

    def products(self, x: Tensor, m: int, out: Tensor, parts: int) -> None:
        """Write `x @ weight.T` to `out`."""
        x = x.reshape(m, self.columns)
        ordered = x if self.order is None else x.index_select(1, self.order)
        kernels.block_products(
            *self._arguments, ordered.numpy(), out.view(m, len(self.codes)).numpy(), parts
        )

    def expand(self, start: int, tile: np.ndarray, parts: int) -> None:
        """Write the rows from `start` on to `tile` [n, columns]."""
        kernels.expand_blocks(*self._arguments, start, tile, parts)

    @property
    def _arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, bool]:
        return self.codes, self.scale, self.offset, self.sign_bit, self.rounds

    def rows(self, indices: np.ndarray) -> Tensor:
        """Return some rows as fp32, with the columns in the weight's order."""
        of_row = indices // (len(self.codes) // len(self.scale))
        scale, offset = (
            torch.from_numpy(values[of_row])[:, :, None] for values in (self.scale, self.offset)
        )
        codes = torch.from_numpy(self.codes[indices])
        if self.is_paired:
            codes = torch.stack((codes & 15, codes >> 4), -1)
        blocks = codes.reshape(*scale.shape[:2], self.columns // scale.shape[1]).int()
        values = (((blocks ^ self.sign_bit) - self.sign_bit) - offset) * scale
        return (values.half().float() if self.rounds else values).reshape(
            len(indices), self.columns
        )


@dataclass(frozen=True)
class Tables:
    """Two codes in each byte, and for each row a table of sixteen integers and the value of a 1.

    An integer is `factor * (code - zero) + residue[code]`, too: `factors` fp32 [rows, 2] have the
    factor and the zero, for codes whose `sign_bit` is inverted; `residues` uint8 [rows, 16] have
    128 more than the residues.
    """

    codes: np.ndarray
    tables: np.ndarray
    unit: np.ndarray
    residues: np.ndarray
    factors: np.ndarray
    sign_bit: int

    @cached_property
    def order(self) -> Tensor:
        """The order of looked-up columns: `vector.ORDER` within each 32."""
        starts = torch.arange(0, 2 * self.codes.shape[1], vector.COLUMNS)
        return (starts[:, None] + torch.tensor(vector.ORDER)).reshape(-1)

    @property
    def columns(self) -> int:
        """The number of the weight's columns."""
        width: int = self.codes.shape[1]
        return 2 * width

    def products(self, x: Tensor, m: int, out: Tensor, parts: int) -> None:
        """Write `x @ weight.T` to `out`."""
        self._alone.products(x, m, out, parts)

    @cached_property
    def _alone(self) -> TableGroup:
        return TableGroup((self,))

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields for a copy, without addresses: the copy's arrays have new ones."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class TableGroup:
    """Weights of equal width that multiply one x in one call.

    `as_integers` is true if a few rows of x multiply as integers (`harness.mil.packed.integers`).
    """

    def __init__(self, weights: Sequence[Tables]) -> None:
        self.as_integers = integers.AVAILABLE
        (columns,) = {weight.columns for weight in weights}
        self._weights, self._order = tuple(weights), weights[0].order.numpy()
        rows = [len(weight.codes) for weight in weights]
        before = [0, *itertools.accumulate(rows)]
        self._listed = np.array(
            [
                [
                    *map(_address, (w.codes, w.tables, w.unit, w.residues, w.factors)),
                    *(len(w.codes), start, w.sign_bit),
                ]
                for w, start in zip(weights, before, strict=False)
            ]
        )
        self._addresses = _address(self._listed), len(rows), _address(self._order), columns

    def products(self, x: Tensor, m: int, out: Tensor, parts: int) -> None:
        """Write `x @ weight.T` of each weight to `out`, one after the other."""
        given = *self._addresses, x.data_ptr(), m, out.data_ptr()
        if m > FEW_ROWS:
            kernels.table_tiles(*given, parts)
        elif parts > 1:
            pool(parts - 1).products(*given, self.as_integers)
        else:
            kernels.table_products(*given, self.as_integers)


def _address(array: np.ndarray) -> int:
    assert array.flags.c_contiguous
    address: int = array.ctypes.data
    return address


def best_layout(blocks: Blocks) -> Blocks | Tables:
    """Return the faster layout of those that are exact and that this machine supports."""
    fits = (
        blocks.is_paired
        and blocks.scale.shape[1] == 1
        and blocks.columns % vector.COLUMNS == 0
        and vector.available()
    )
    made = fits and _integer_tables(
        blocks.scale[:, 0], blocks.offset[:, 0], blocks.sign_bit, blocks.rounds
    )
    if not made:
        return blocks
    tables, unit, residues, factors = (
        np.repeat(values, len(blocks.codes) // len(values), axis=0) for values in made
    )
    return Tables(blocks.codes, tables, unit, residues, factors, blocks.sign_bit)


def _integer_tables(
    scale: np.ndarray, offset: np.ndarray, sign_bit: int, rounds: bool
) -> tuple[np.ndarray, ...] | None:
    """Return the sixteen values of a 4-bit code in each row: integers of 16 bits, and their units.

    The tables are uint8 [n, 32], 16 low bytes and 16 high bytes; the units are fp32 [n], divided by
    65536. Residues and factors follow, which give the same integers (`Tables`).

    `scale` and `offset` are fp32 [n]; `rounds` is true for fp16 weights. A weight is
    `scale * (code - offset)`, rounded to its dtype. In fp16 every such value is a multiple of the
    scale's unit in the last place, and at most 30 * 2**11 units. Return None if a value is not
    exactly an integer of 16 bits times the unit, for example because it overflows.
    """
    steps = ((_LEVELS ^ sign_bit) - sign_bit) - offset[:, None]  # [n, 16]
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
    factor = scale / np.where(unit == 0, 1, unit)
    residues = (integers - factor[:, None] * steps)[:, _LEVELS ^ sign_bit]
    if (np.abs(residues) > 127).any():
        return None
    factors = np.stack([factor, offset + sign_bit], 1).astype(np.float32)
    units = (unit / _UNITS).astype(np.float32)
    return tables, units, (residues + 128).astype(np.uint8), factors
