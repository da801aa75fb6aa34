"""A phase's method, called with tokens of a sequence: makes its masks and other inputs.

The rows of a call are a chain of tokens or a tree of them. A row sees itself and its ancestors, and
has the position of its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.generate.caches import DTYPES, Caches, Rows
from harness.generate.phase import TOKENS_INPUT, Phase

if TYPE_CHECKING:
    from harness.models.model import Freqs
    from harness.runtimes.base import Method


class BoundMethod:
    """A phase's method, and the inputs that are its own: they are written in place.

    They are tokens [1, input_len], a mask [1, input_len, length + input_len] for each length of a
    cache, and `last_valid_token_pos` [1].
    """

    def __init__(self, method: Method, phase: Phase, tables: Freqs) -> None:
        self.phase = phase
        self._method = method
        n = phase.input_len
        # A chunk's padding may extend beyond the tables: it then reads the last row again.
        self._cos, self._sin = (torch.cat([table, table[-1:].expand(n, -1)]) for table in tables)
        self._tokens = torch.zeros(1, n, dtype=DTYPES[phase.tokens_dtype])
        self._masks = {
            length: torch.zeros(1, n, length + n, dtype=DTYPES[method.inputs[index].dtype])
            for length, index in phase.masks.items()
        }
        self._last_valid_token_pos = torch.zeros(1, dtype=torch.int64)
        self._chain = Rows.of_tree(range(-1, n - 1), n)
        self._filled: Rows | None = None  # the rows that the masks are filled for

    def __call__(
        self,
        tokens: Sequence[int],
        position: int,
        caches: Caches,
        parents: Sequence[int] | None = None,
        last: int | None = None,
    ) -> Sequence[torch.Tensor]:
        """Call the method with up to `input_len` tokens, the first one at `position`.

        `parents` has the row of each token's parent; without it, this is the token before. `last`
        is the row whose logits are wanted; without it, this is the last token's.
        """
        phase = self.phase
        rows = self._chain
        positions: slice | torch.Tensor = slice(position, position + phase.input_len)
        if parents is not None:
            rows = Rows.of_tree(parents, phase.input_len)
            positions = position + rows.depths
        for length, mask in self._masks.items():
            caches.fill_mask(length, mask, position, rows, rows is self._filled)
        self._filled = rows
        self._tokens.zero_()
        self._tokens[0, : len(tokens)] = torch.tensor(tokens, dtype=self._tokens.dtype)
        self._last_valid_token_pos[0] = len(tokens) - 1 if last is None else last
        inputs = {
            TOKENS_INPUT: self._tokens,
            phase.cos: self._cos[positions],
            phase.sin: self._sin[positions],
        }
        inputs |= {index: self._masks[length] for length, index in phase.masks.items()}
        if phase.last_valid_token_pos is not None:
            inputs[phase.last_valid_token_pos] = self._last_valid_token_pos
        for layer, cache in enumerate(phase.caches):
            inputs[cache.k_in] = caches.keys[layer]
            inputs[cache.v_in] = caches.values[layer]
        return self._method(*(inputs[index] for index in range(phase.n_inputs)))
