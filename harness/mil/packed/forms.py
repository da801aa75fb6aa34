"""The two forms in which a packed weight is multiplied; each has its own order of columns.

Both have `products` of x, contiguous, fp32 and m times the columns. `Blocks` can `expand` too:
write rows as fp32, their columns in an `order` (None: their own).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from harness.mil.packed import kernels, lookup
from harness.mil.packed.tables import integer_tables

FEW_ROWS = 3  # rows of x up to which decoding the weight for each of them is fastest


@dataclass(frozen=True)
class Blocks:
    """Codes uint8 [rows, columns], or [rows, columns / 2] where two share a byte (low half first),
    with a scale and an offset, fp32, for each block of rows and columns.

    `flip` is 8 or 128 for signed codes of 4 or 8 bits, 0 for unsigned ones; `rounds` says that
    the values are fp16.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    flip: int
    rounds: bool
    is_paired: bool

    @property
    def columns(self) -> int:
        """The weight's own, not the bytes'."""
        return self.codes.shape[1] * (2 if self.is_paired else 1)

    @cached_property
    def order(self) -> Tensor | None:
        """Of two codes to a byte all the low ones come first, then all the high ones."""
        if not self.is_paired:
            return None
        return torch.arange(self.columns).reshape(-1, 2).T.reshape(-1)

    def products(self, x: Tensor, m: int, out: Tensor, parts: int) -> None:
        """Write `x @ weight.T` into `out`."""
        x = x.reshape(m, self.columns)
        ordered = x if self.order is None else x.index_select(1, self.order)
        kernels.block_products(
            *self._arguments, ordered.numpy(), out.view(m, len(self.codes)).numpy(), parts
        )

    def expand(self, start: int, tile: np.ndarray, parts: int) -> None:
        """Write the rows from `start` on into `tile` [n, columns]."""
        kernels.expand_blocks(*self._arguments, start, tile, parts)

    @property
    def _arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, bool]:
        return self.codes, self.scale, self.offset, self.flip, self.rounds

    def rows(self, indices: np.ndarray) -> Tensor:
        """Return some rows as fp32, columns in their own order."""
        of_row = indices // (len(self.codes) // len(self.scale))
        scale, offset = (
            torch.from_numpy(values[of_row])[:, :, None] for values in (self.scale, self.offset)
        )
        codes = torch.from_numpy(self.codes[indices])
        if self.is_paired:
            codes = torch.stack((codes & 15, codes >> 4), -1)
        blocks = codes.reshape(*scale.shape[:2], self.columns // scale.shape[1]).int()
        values = (((blocks ^ self.flip) - self.flip) - offset) * scale
        return (values.half().float() if self.rounds else values).reshape(
            len(indices), self.columns
        )


@dataclass(frozen=True)
class Tables:
    """Codes two to a byte, and for each row a table of sixteen integers and what 1 stands for."""

    codes: np.ndarray
    tables: np.ndarray
    unit: np.ndarray

    @cached_property
    def order(self) -> Tensor:
        """As `lookup.ORDER`, in each 32 columns."""
        starts = torch.arange(0, 2 * self.codes.shape[1], lookup.COLUMNS)
        return (starts[:, None] + torch.tensor(lookup.ORDER)).reshape(-1)

    def products(self, x: Tensor, m: int, out: Tensor, parts: int) -> None:
        """Write `x @ weight.T` into `out`."""
        multiply = kernels.table_products if m <= FEW_ROWS else kernels.table_panels
        multiply(*self._addresses, x.data_ptr(), m, out.data_ptr(), parts)

    @cached_property
    def _addresses(self) -> tuple[int, ...]:
        arrays = (self.codes, self.tables, self.unit, self.order.numpy())
        assert all(array.flags.c_contiguous for array in arrays)
        return (*(array.ctypes.data for array in arrays), *self._sizes)

    def __getstate__(self) -> dict[str, np.ndarray]:
        """Return what a copy is made of: its arrays lie at other addresses."""
        return {"codes": self.codes, "tables": self.tables, "unit": self.unit}

    @property
    def _sizes(self) -> tuple[int, int]:
        return len(self.codes), 2 * self.codes.shape[1]


def best_form(blocks: Blocks) -> Blocks | Tables:
    """Return the faster form where it is exact, and this machine has what it takes."""
    fits = (
        blocks.is_paired
        and blocks.scale.shape[1] == 1
        and blocks.columns % lookup.COLUMNS == 0
        and lookup.available()
    )
    made = fits and integer_tables(
        blocks.scale[:, 0], blocks.offset[:, 0], blocks.flip, blocks.rounds
    )
    if not made:
        return blocks
    tables, unit = (np.repeat(values, len(blocks.codes) // len(values), axis=0) for values in made)
    return Tables(blocks.codes, tables, unit)
