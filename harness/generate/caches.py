"""The key and value caches of a sequence, and the masks by which a method sees their slots.

The longest caches hold every position. A shorter cache makes its layer a *sliding window*, as in
ExecuTorch 1.5: a token sees itself and the `length - 1` tokens before it, and the newest positions
replace the oldest ones. The two styles of ExecuTorch's runners place positions differently:

- `smart_mask` writes position p into slot p, in a window p modulo `length` (a ring);
- `shift_pointer` shifts a cache to the left and writes into its last slots.

Both give the same results, because keys are rotated before they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from harness.errors import HarnessError
from harness.generate.layout import ModelLayout
from harness.generate.phase import Phase

CacheStyle = Literal["smart_mask", "shift_pointer"]

DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "float32", "float64", "bfloat16", "int32", "int64")
}


@dataclass(frozen=True)
class Rows:
    """The rows of a call: their depths, int64 [T], and which rows each row sees, bool [T, T]."""

    depths: torch.Tensor
    visible: torch.Tensor

    @classmethod
    def of_tree(cls, parents: Sequence[int], count: int) -> Rows:
        """Return the rows of a tree, given each row's parent; the parent of a root is -1.

        Rows after the tree, up to `count`, see themselves: a softmax over nothing is NaN.
        """
        depths = torch.zeros(count, dtype=torch.int64)
        visible = torch.eye(count, dtype=torch.bool)
        for row, parent in enumerate(parents):
            if parent >= 0:
                depths[row] = depths[parent] + 1
                visible[row] |= visible[parent]
        return cls(depths, visible)


class Caches:
    """The caches of all layers, [1, n_kv_heads, length, head_dim] each.

    A floating cache starts in the declared dtype and is widened once to the dtype of the method's
    updates. It is written in place after that.
    """

    def __init__(self, layout: ModelLayout, style: CacheStyle) -> None:
        if style not in get_args(CacheStyle):
            raise HarnessError(
                f"there is no cache style '{style}', only {' and '.join(get_args(CacheStyle))}"
            )
        self._lengths = [cache.length for cache in layout.prefill.caches]
        self._slots = {
            length: Slots(length, length < layout.cache_len, style)
            for length in layout.prefill.masks
        }
        dtype = DTYPES[layout.prefill.cache_dtype]
        self.keys, self.values = (
            [
                torch.zeros(1, layout.n_kv_heads, length, layout.head_dim, dtype=dtype)
                for length in self._lengths
            ]
            for _ in range(2)
        )

    def store(
        self, phase: Phase, outputs: Sequence[torch.Tensor], position: int, first: int, count: int
    ) -> None:
        """Store `count` rows of a call's updates, from row `first` on, at `position` and after."""
        pieces = {n: slots.pieces(position, first, count) for n, slots in self._slots.items()}
        for layer, cache in enumerate(phase.caches):
            for caches, output in ((self.keys, cache.k_out), (self.values, cache.v_out)):
                update = outputs[output]
                if caches[layer].dtype != update.dtype:
                    wider = torch.promote_types(caches[layer].dtype, update.dtype)
                    caches[layer] = caches[layer].to(wider)
                slots = self._slots[cache.length]
                slots.write(caches[layer], update, pieces[cache.length], count)
        for slots in self._slots.values():
            slots.hold(position, count)

    def can_forget(self, kept: int) -> bool:
        """Return whether every window still holds what the token at position `kept` sees."""
        return all(slots.holds_window(kept) for slots in self._slots.values())

    def forget(self, kept: int) -> None:
        """Empty the slots of position `kept` and after."""
        for layer, length in enumerate(self._lengths):
            self._slots[length].clear(self.keys[layer], kept)
            self._slots[length].clear(self.values[layer], kept)
        for slots in self._slots.values():
            slots.forget(kept)

    def fill_mask(
        self, length: int, mask: torch.Tensor, position: int, rows: Rows, is_filled: bool
    ) -> None:
        """Fill a mask [1, T, length + T] with 0 where a row sees a column, and -inf elsewhere.

        `position` is that of depth 0; `is_filled` says that the columns of the rows are those of
        the call before.
        """
        slots = self._slots[length]
        mask[0, :, :length] = slots.cache_mask(position, rows)
        if not is_filled:
            mask[0, :, length:] = _additive(slots.near(rows))

    def in_order(self, caches: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
        """Copy what a layer's cache holds, by ascending position: [n_kv_heads, held, head_dim]."""
        return caches[layer][0][:, self._slots[self._lengths[layer]].order()]


class Slots:
    """The position in each slot of the caches of one length, -1 where the slot is empty."""

    def __init__(self, length: int, is_window: bool, style: CacheStyle) -> None:
        self.length, self.is_window, self.style = length, is_window, style
        self.held = torch.full((1, 1, length), -1)  # the slots' axis is that of the caches
        self._shown = _additive(self.held[0, 0] >= 0)

    def pieces(self, position: int, first: int, count: int) -> list[tuple[slice, slice]]:
        """Return the slots to write and the rows for them: the newest `length` of `count` rows.

        Row `first` has `position`.
        """
        dropped = max(0, count - self.length)
        position, first, count = position + dropped, first + dropped, count - dropped
        if not count:
            return []
        if self.style == "shift_pointer":
            return [(slice(self.length - count, self.length), slice(first, first + count))]
        start = position % self.length
        until_end = min(count, self.length - start)
        split, end = first + until_end, first + count
        found = [(slice(start, start + until_end), slice(first, split))]
        if split < end:
            found.append((slice(0, end - split), slice(split, end)))
        return found

    def write(
        self,
        cache: torch.Tensor,
        update: torch.Tensor,
        pieces: Sequence[tuple[slice, slice]],
        count: int,
    ) -> None:
        """Write the pieces of an update of `count` rows into a cache, in place."""
        if self.style == "shift_pointer":
            cache.copy_(cache.roll(-count, dims=2))
        for slots, rows in pieces:
            cache[:, :, slots] = update[:, :, rows]

    def hold(self, position: int, count: int) -> None:
        """Note that `count` positions from `position` on were written."""
        positions = torch.arange(position, position + count)[None, None]
        self.write(self.held, positions, self.pieces(position, 0, count), count)
        self._shown = _additive(self.held[0, 0] >= 0)

    def clear(self, cache: torch.Tensor, kept: int, value: int = 0) -> None:
        """Write `value` into the slots of position `kept` and after."""
        lost = self.held[0, 0] >= kept
        cache[:, :, lost] = value
        if self.style == "shift_pointer":
            cache.copy_(cache.roll(int(lost.sum()), dims=2))

    def forget(self, kept: int) -> None:
        """Note that position `kept` and those after it were cleared."""
        self.clear(self.held, kept, -1)
        self._shown = _additive(self.held[0, 0] >= 0)

    def holds_window(self, kept: int) -> bool:
        """Return whether the positions that the token at `kept` sees are held."""
        held = int(((self.held >= 0) & (self.held < kept)).sum())
        return not self.is_window or held >= min(kept, self.length - 1)

    def cache_mask(self, position: int, rows: Rows) -> torch.Tensor:
        """Return 0 where a row sees a slot, else -inf; `position` is that of depth 0.

        It is [T, length], or [length] where all rows see the same slots.
        """
        if not self.is_window:
            return self._shown
        held = self.held[0, 0]
        return _additive((held >= 0) & (held > rows.depths[:, None] + (position - self.length)))

    def near(self, rows: Rows) -> torch.Tensor:
        """Return which of the rows that a row sees are in its window, bool [T, T]."""
        if not self.is_window:
            return rows.visible
        return rows.visible & (rows.depths[:, None] - rows.depths < self.length)

    def order(self) -> torch.Tensor:
        """Return the slots that hold a position, by ascending position."""
        held = self.held[0, 0]
        return held.argsort()[int((held < 0).sum()) :]


def _additive(visible: torch.Tensor) -> torch.Tensor:
    return torch.where(visible, 0.0, -torch.inf)
