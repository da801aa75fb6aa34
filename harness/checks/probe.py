"""Calls one method with seeded inputs, changes one of them, and compares which outputs move.

Inputs are found by the indices that the constants declare, so that a wrong index shows as an input
that moves something else. Shapes: T tokens of the call, C cache positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.generate.phase import LOGITS_OUTPUT, TOKENS_INPUT, Phase
from harness.runtimes.base import Method

_SEED = 20_26
_MOVED = 1e-5  # of the largest value; inputs without influence leave every bit as it is
_ROTATION = 1e-4  # of the largest value; two products and a sum in fp32

Inputs = Mapping[int, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]
KIND_COLUMNS = {"key": 0, "value": 2}  # of a row of kv_cache_specs: the input; the output follows


def differ(new: torch.Tensor, old: torch.Tensor, tolerance: float = _MOVED) -> bool:
    """Return whether two tensors of one shape differ; NaN differs from everything."""
    if not new.numel():
        return False
    return not float((new - old).abs().max()) <= tolerance * float(old.abs().max())


def is_rotation(new: torch.Tensor, old: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Return whether new keys [1, K, T, D] are the old ones, rotated by cos and sin [T, D / 2].

    Columns 2i and 2i + 1 are a pair.
    """
    even, odd = old[..., ::2], old[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    return not differ(new, turned, _ROTATION)


@dataclass(frozen=True)
class RowMoves:
    """For each row of `kv_cache_specs`, the rows whose update moves when its cache changes.

    A layer's cache moves the updates of all later layers. None stands for a cache that moves
    neither an update nor the logits: its layer adds nothing, and shows nothing.
    """

    moved: tuple[frozenset[int] | None, ...]

    @property
    def layers(self) -> list[int | None]:
        """The layer of each row's cache input."""
        last = len(self.moved) - 1
        return [None if rows is None else last - len(rows) for rows in self.moved]

    @property
    def compared(self) -> int:
        """The number of pairs of a cache that moves something and an update."""
        return sum(rows is not None for rows in self.moved) * len(self.moved)

    def update_layers(self, row: int) -> tuple[int, int]:
        """Return the first and the last layer that a row's update may be of."""
        known = [(n, m) for n, m in zip(self.layers, self.moved, strict=True) if m is not None]
        after = [layer + 1 for layer, rows in known if layer is not None and row in rows]
        upto = [layer for layer, rows in known if layer is not None and row not in rows]
        return max(after, default=0), min(upto, default=len(self.moved) - 1)


class Probe:
    """One method; called with changed inputs by index, it fills the others with the same values.

    `rows` are those of `kv_cache_specs` and `masks` those of `mask_specs`, in their declared order.
    """

    def __init__(
        self,
        method: Method,
        phase: Phase,
        rows: Sequence[tuple[int, ...]],
        masks: Sequence[tuple[int, ...]],
        vocab_size: int,
    ) -> None:
        self.phase, self.length = phase, phase.input_len
        self.rows, self.masks = tuple(rows), tuple(masks)
        self._method, self._vocab_size = method, vocab_size
        self._generator = torch.Generator().manual_seed(_SEED)
        self._base = {TOKENS_INPUT: self._tokens(), **self.causal_masks(), **self.angles()}
        if phase.last_valid_token_pos is not None:
            self._base[phase.last_valid_token_pos] = self.position(self.length - 1)
        for index in (row[column] for row in self.rows for column in KIND_COLUMNS.values()):
            shape = method.inputs[index].shape
            self._base[index] = torch.randn(shape, generator=self._generator)

    def __call__(self, changed: Inputs | None = None) -> Outputs:
        """Execute once, with some inputs replaced."""
        inputs = self._base | dict(changed or {})
        outputs = self._method(*(inputs[index] for index in range(self.phase.n_inputs)))
        return tuple(output.float() for output in outputs)

    def _tokens(self) -> torch.Tensor:
        shape = (1, self.length)
        drawn = torch.randint(self._vocab_size, shape, generator=self._generator)
        return drawn.to(getattr(torch, self.phase.tokens_dtype))

    def other_tokens(self, start: int, end: int | None = None, by: int = 1) -> torch.Tensor:
        """Return the tokens, with other ids from one position to before another."""
        tokens = self._base[TOKENS_INPUT].clone()
        tokens[:, start:end] = (tokens[:, start:end] + by) % self._vocab_size
        return tokens

    def causal_masks(self) -> dict[int, torch.Tensor]:
        """Return masks [1, T, C + T] that show all caches, and each token those before it."""
        closed = torch.full((self.length, self.length), -math.inf).triu(diagonal=1)
        return {
            index: torch.cat((torch.zeros(self.length, cache_len), closed), -1)[None]
            for index, cache_len in self.masks
        }

    def cache_masks(self, columns: int, lanes: int) -> dict[int, torch.Tensor]:
        """Return masks that show each token a few cache positions of its own, and nothing else.

        Token i sees the positions from `columns * (i % lanes)` on; without caches, tokens of the
        call stand for them.
        """
        masks = {}
        for index, cache_len in self.masks:
            mask = torch.full((1, self.length, cache_len + self.length), -math.inf)
            for token in range(self.length):
                first = columns * (token % lanes)
                mask[0, token, first : first + columns] = 0
            masks[index] = mask
        return masks

    def alone(self) -> dict[int, torch.Tensor]:
        """Return masks that show each token one cache position: all that it mixes is one value."""
        return self.cache_masks(1, min(self.length, self.shortest or 1))

    @property
    def shortest(self) -> int:
        """The least number of positions that a cache holds."""
        return min((cache_len for _, cache_len in self.masks), default=0)

    def angles(self) -> dict[int, torch.Tensor]:
        """Return cosines and sines [T, D / 2] of seeded angles, as numbers of fp16."""
        shape = self._method.inputs[self.phase.cos].shape
        generator = torch.Generator().manual_seed(_SEED + 1)
        drawn = torch.rand(shape, generator=generator) * math.tau
        return {
            self.phase.cos: drawn.cos().half().float(),
            self.phase.sin: drawn.sin().half().float(),
        }

    def unrotated(self) -> Outputs:
        """Return the outputs without rotation, while each token sees one cache position."""
        cos = torch.ones(self._method.inputs[self.phase.cos].shape)
        plain = {self.phase.cos: cos, self.phase.sin: torch.zeros_like(cos)}
        return self(plain | self.alone())

    def position(self, index: int) -> torch.Tensor:
        """Return a value of `last_valid_token_pos`."""
        return torch.tensor([index])

    def changed_caches(self, cache_len: int, position: int) -> dict[int, torch.Tensor]:
        """Return all caches of a length, changed at one position."""
        rows = [row for row in self.rows if row[4] == cache_len]
        indices = {row[column] for row in rows for column in KIND_COLUMNS.values()}
        return {index: self.changed_cache(index, position) for index in indices}

    def changed_cache(self, index: int, position: int | None = None) -> torch.Tensor:
        """Return one cache, changed at one position, or everywhere."""
        cache = self._base[index].clone()
        cache[:, :, slice(None) if position is None else position] *= -2
        return cache

    def updates(self, new: Outputs, old: Outputs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the updates of keys and values [1, K, T, D] of two calls in pairs."""
        for row in self.rows:
            for index in (row[1], row[3]):
                yield new[index], old[index]

    def positions_moved(self, new: Outputs, old: Outputs) -> set[int]:
        """Return the positions of the input at which an update differs between two calls."""
        pairs = list(self.updates(new, old))
        return {
            at
            for at in range(self.length)
            if any(differ(a[:, :, at], b[:, :, at]) for a, b in pairs)
        }

    def row_moves(self, kind: str) -> RowMoves:
        """Change the key or the value cache of each row; return whose updates move.

        Each token sees two cache positions of its own, so that a call tries as many rows as it has
        tokens.
        """
        lanes = min(self.length, self.shortest // 2)
        if not lanes:
            return RowMoves((None,) * len(self.rows))
        seen = self.cache_masks(2, lanes)
        old = self(seen)
        moved: list[frozenset[int] | None] = []
        for start in range(0, len(self.rows), lanes):
            moved += self._moves(self.rows[start : start + lanes], KIND_COLUMNS[kind], seen, old)
        return RowMoves(tuple(moved))

    def _moves(
        self, group: Sequence[tuple[int, ...]], column: int, seen: Inputs, old: Outputs
    ) -> Iterator[frozenset[int] | None]:
        """Change the cache of row i of a group at a position that token i alone sees."""
        changed = {
            row[column]: self.changed_cache(row[column], 2 * token)
            for token, row in enumerate(group)
        }
        new = self({**seen, **changed})
        for token in range(len(group)):
            rows = frozenset(
                number
                for number, row in enumerate(self.rows)
                if differ(new[row[column + 1]][:, :, token], old[row[column + 1]][:, :, token])
            )
            is_seen = bool(rows) or self._logits_move(token, seen, changed, (new, old))
            yield rows if is_seen else None

    def _logits_move(
        self, token: int, seen: Inputs, changed: Inputs, outputs: tuple[Outputs, Outputs]
    ) -> bool:
        """Return whether the logits of a token differ; a method of one row is called for them."""
        if self.phase.full_logits:
            new, old = (both[LOGITS_OUTPUT][:, token] for both in outputs)
            return differ(new, old)
        assert self.phase.last_valid_token_pos is not None
        asked = {**seen, self.phase.last_valid_token_pos: self.position(token)}
        return differ(self({**asked, **changed})[LOGITS_OUTPUT], self(asked)[LOGITS_OUTPUT])
