"""A quantized weight of two axes that stays packed: its codes are read from the mapped file.

Its values are the declared ones: `scale * (code - offset)`, rounded to the declared dtype. Products
are summed in fp32, or in fp64 if `x` is fp64; they differ from products with the expanded weight
only in the order of summing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from harness.mil.packed.layouts import FEW_ROWS, Blocks, TableGroup, Tables, best_layout

_ALONE = 1 << 18  # multiplications below which waking another thread costs more than it saves
_FASTER = 4  # times as many multiplications as integers take this time, with a few rows of x
_TILE = 1 << 19


class PackedWeight:
    """A weight [rows, columns]; `carrier` is the dtype of the rows and tensors that it returns."""

    def __init__(self, blocks: Blocks, carrier: torch.dtype) -> None:
        self.shape = torch.Size((len(blocks.codes), blocks.columns))
        self.dtype = carrier
        self._blocks = blocks
        self._fast = best_layout(blocks)

    @property
    def has_tables(self) -> bool:
        """Whether the weight's layout lets it multiply in one call with others."""
        return isinstance(self._fast, Tables)

    def linear(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T` for x [*, columns], fp32 or fp64, in the dtype of x."""
        rows, columns = self.shape
        if x.shape[-1] != columns:
            raise ValueError(f"{list(x.shape)} times the transpose of {list(self.shape)}")
        by_tiles = x.numel() > FEW_ROWS * columns and self._fast is self._blocks
        if by_tiles or x.dtype != torch.float32:
            return self._product_by_tiles(x)
        out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
        m = x.numel() // columns
        parts = parts_for(m * rows * columns)
        with turn(parts):
            self._fast.products(x.contiguous(), m, out, parts)
        return out

    def rows(self, indices: Tensor) -> Tensor:
        """Return some rows [n, columns], by an int64 tensor [n] of indices in range."""
        return self._blocks.rows(indices.numpy()).to(self.dtype)

    def dequantized(self) -> Tensor:
        """Return the whole weight; each call expands it again."""
        return _expanded(self._blocks).to(self.dtype)

    @cached_property
    def tensor(self) -> Tensor:
        """The whole weight, expanded once, for operations that cannot read it packed."""
        return self.dequantized()

    def _product_by_tiles(self, x: Tensor) -> Tensor:
        """Expand some rows at a time to a tile, and multiply by it.

        The tile is the left operand, because BLAS is faster this way with few rows of x.
        """
        n_rows, n_columns = self.shape
        x_rows = x.reshape(-1, n_columns)
        order = self._blocks.order
        columns = (x_rows if order is None else x_rows.index_select(1, order)).T
        product = torch.empty((n_rows, columns.shape[1]), dtype=x.dtype)
        tile = _tile(min(n_rows, max(1, _TILE // n_columns)), n_columns)
        for start in range(0, n_rows, len(tile)):
            part = tile[: n_rows - start]
            parts = parts_for(part.numel())
            with turn(parts):
                self._blocks.expand(start, part.numpy(), parts)
            torch.mm(part.to(x.dtype), columns, out=product[start : start + len(part)])
        return product.T.contiguous().reshape(*x.shape[:-1], n_rows)


class PackedLinears:
    """Packed weights that multiply one x in one call; each `has_tables`."""

    def __init__(self, weights: Sequence[PackedWeight]) -> None:
        self._weights = weights
        self._group = TableGroup([w._fast for w in weights if isinstance(w._fast, Tables)])
        self._rows = [weight.shape[0] for weight in weights]
        self._n_rows, self._n_weights = sum(self._rows), sum(w.shape.numel() for w in weights)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return `x @ weight.T` of each weight, as `PackedWeight.linear` does."""
        if x.dtype != torch.float32:
            return tuple(weight.linear(x) for weight in self._weights)
        m = x.numel() // x.shape[-1]
        (out,) = self.joined(m, x)
        products = out.split([m * rows for rows in self._rows])
        shape = x.shape[:-1]
        return tuple(p.view(*shape, n) for p, n in zip(products, self._rows, strict=True))

    def joined(self, m: int, x: Tensor) -> tuple[Tensor]:
        """Return the products of each weight with x [m, columns], fp32, all in one vector.

        Raise ValueError for an x of another size or dtype: the kernels read its memory.
        """
        if x.dtype != torch.float32 or x.numel() != m * self._weights[0].shape[1]:
            raise ValueError(f"{x.dtype} {list(x.shape)} for fp32 of {m} rows")
        out = torch.empty(m * self._n_rows, dtype=torch.float32)
        fast = self._group.as_integers and m <= FEW_ROWS
        parts = parts_for(m * self._n_weights // (_FASTER if fast else 1))
        with turn(parts):
            self._group.products(x.contiguous(), m, out, parts)
        return (out,)


_held = threading.local()
_THREADS, _NOTHING = threading.Lock(), nullcontext()


@contextmanager
def multiplied_by(threads: int) -> Iterator[None]:
    """Multiply packed weights with this number of threads instead of torch's."""
    before = getattr(_held, "threads", None)
    _held.threads = threads
    try:
        yield
    finally:
        _held.threads = before


def parts_for(count: int) -> int:
    """Return the number of threads to use for `count` multiplications."""
    if count < _ALONE:
        return 1
    return getattr(_held, "threads", None) or torch.get_num_threads()


def turn(parts: int) -> AbstractContextManager[object]:
    """Return a lock on numba's threads, if any are needed.

    Some of its threading layers abort a process that calls them twice at the same time.
    """
    return _THREADS if parts > 1 else _NOTHING


def _tile(rows: int, columns: int) -> Tensor:
    """Return the memory of a tile, reused by each call: new memory costs more than filling it."""
    held: Tensor | None = getattr(_held, "tile", None)
    if held is None or held.numel() < rows * columns:
        held = _held.tile = torch.empty(max(_TILE, rows * columns), dtype=torch.float32)
    return held[: rows * columns].view(rows, columns)


def expanded(value: Tensor | PackedWeight) -> Tensor:
    """Return the tensor of a packed weight; return a tensor unchanged."""
    return value.tensor if isinstance(value, PackedWeight) else value


def _expanded(blocks: Blocks) -> Tensor:
    """Return all values as fp32, with the columns in the weight's order."""
    values = torch.empty((len(blocks.codes), blocks.columns), dtype=torch.float32)
    with _THREADS:
        blocks.expand(0, values.numpy(), torch.get_num_threads())
    if not blocks.is_paired:
        return values
    return values.reshape(len(values), 2, -1).mT.reshape(len(values), -1)
