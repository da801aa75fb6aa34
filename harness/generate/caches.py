"""The key and value caches of a sequence, and the masks by which a method sees their slots.

The longest caches hold every position. A shorter cache makes its layer a *sliding window*, as in
ExecuTorch 1.5: a token sees itself and the `length - 1` tokens before it, and the newest positions
replace the oldest ones. The two styles of ExecuTorch's runners place positions differently:

- `smart_mask` writes position p into slot p, in a window p modulo `length` (a ring);
- `shift_pointer` shifts a cache to the left and writes into its last slots.

Both give the same results, because keys are rotated before they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        for layer, cache in enumerate(phase.caches):
            slots = self._slots[cache.length]
            for caches, output in ((self.keys, cache.k_out), (self.values, cache.v_out)):
                update = outputs[output][:, :, first : first + count]
                caches[layer] = caches[layer].to(
                    torch.promote_types(caches[layer].dtype, update.dtype)
                )
                slots.write(caches[layer], update, position)
        for slots in self._slots.values():
            slots.write(slots.held, torch.arange(position, position + count)[None, None], position)

    def can_forget(self, kept: int) -> bool:
        """Return whether every window still holds what the token at position `kept` sees."""
        return all(slots.holds_window(kept) for slots in self._slots.values())

    def forget(self, kept: int) -> None:
        """Empty the slots of position `kept` and after."""
        for layer, length in enumerate(self._lengths):
            self._slots[length].clear(self.keys[layer], kept, 0)
            self._slots[length].clear(self.values[layer], kept, 0)
        for slots in self._slots.values():
            slots.clear(slots.held, kept, -1)

    def fill_mask(
        self, length: int, mask: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor
    ) -> None:
        """Fill a mask [1, T, length + T] with 0 where a row sees a column, and -inf elsewhere.

        `positions` [T] has the rows' positions, and `visible` [T, T] the rows of the same call
        that each row sees.
        """
        mask[0, :, :length] = _additive(self._slots[length].seen(positions))
        mask[0, :, length:] = _additive(self._slots[length].near(positions, visible))

    def in_order(self, caches: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
        """Copy what a layer's cache holds, by ascending position: [n_kv_heads, held, head_dim]."""
        return caches[layer][0][:, self._slots[self._lengths[layer]].order()]


class Slots:
    """The position in each slot of the caches of one length, -1 where the slot is empty."""

    def __init__(self, length: int, is_window: bool, style: CacheStyle) -> None:
        self.length, self.is_window, self.style = length, is_window, style
        self.held = torch.full((1, 1, length), -1)  # the slots' axis is that of the caches

    def write(self, cache: torch.Tensor, update: torch.Tensor, position: int) -> None:
        """Write rows [.., .., count, ..] of `position` and after into a cache, in place."""
        if self.style == "shift_pointer" and update.shape[2]:
            cache.copy_(cache.roll(-update.shape[2], dims=2))
        for slots, rows in self._pieces(position, update.shape[2]):
            cache[:, :, slots] = update[:, :, rows]

    def _pieces(self, position: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Yield the slots and the rows to copy into them: the newest `length` rows."""
        first = max(0, count - self.length)
        if first == count:
            return
        if self.style == "shift_pointer":
            yield slice(self.length - (count - first), self.length), slice(first, count)
            return
        start = (position + first) % self.length
        end = min(self.length, start + count - first)
        wraps = first + end - start  # the row that is written into slot 0
        yield slice(start, end), slice(first, wraps)
        yield slice(0, count - wraps), slice(wraps, count)

    def clear(self, cache: torch.Tensor, kept: int, value: int) -> None:
        """Write `value` into the slots of position `kept` and after."""
        lost = self.held[0, 0] >= kept
        cache[:, :, lost] = value
        if self.style == "shift_pointer":
            cache.copy_(cache.roll(int(lost.sum()), dims=2))

    def holds_window(self, kept: int) -> bool:
        """Return whether the positions that the token at `kept` sees are held."""
        held = int(((self.held >= 0) & (self.held < kept)).sum())
        return not self.is_window or held >= min(kept, self.length - 1)

    def seen(self, positions: torch.Tensor) -> torch.Tensor:
        """Return which slots the rows at `positions` [T] see, bool [T, length]."""
        held = self.held[0, 0]
        if self.is_window:
            return (held >= 0) & (held > positions[:, None] - self.length)
        return (held >= 0).expand(len(positions), -1)

    def near(self, positions: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return which of the visible rows of a call are in each row's window, bool [T, T]."""
        if not self.is_window:
            return visible
        return visible & (positions[:, None] - positions < self.length)

    def order(self) -> torch.Tensor:
        """Return the slots that hold a position, by ascending position."""
        held = self.held[0, 0]
        return held.argsort()[int((held < 0).sum()) :]


def _additive(visible: torch.Tensor) -> torch.Tensor:
    return torch.where(visible, 0.0, -torch.inf)
