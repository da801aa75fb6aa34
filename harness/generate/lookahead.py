"""Lookahead decoding: several tokens from one call, the tokens that plain greedy decoding gives.

Fu et al., "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding" (2024). The
rows of a call are a tree, whose root is the last token:

- *window*: N - 1 levels of W guesses. Column j of level i is a guess for the token i + j positions
  after the root; its ancestors are the levels above it in its column, and level 0 up to column j.
  What the model gives after the last level becomes the next call's last level, and the first one is
  dropped: a Jacobi iteration. A column and the token after it are an n-gram.
- *verification*: up to G known n-grams that begin with the root's token, as branches of the root;
  those that begin alike share rows.

The tokens are accepted along a path of branches, as long as the model gives the token that the next
row holds. Each of them therefore has the context of plain decoding. N-grams also come from the
prompt and from the text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from harness.errors import HarnessError
from harness.text import clip

if TYPE_CHECKING:
    import torch

_PATTERN = re.compile(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", re.ASCII)


@runtime_checkable
class TreeFeeder(Protocol):
    """One sequence of tokens whose method can be called with a tree of them: a `Session`."""

    @property
    def room(self) -> int:
        """The number of tokens that can still be fed."""
        ...

    @property
    def tail(self) -> list[int]:
        """The tokens that each call feeds again, and that take rows from its tree."""
        ...

    def prefill(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed a prompt; return the logits [vocab] of its last token."""
        ...

    def tree_rows(self) -> int:
        """Return how many tokens a call takes; HarnessError if it cannot be one of a tree."""
        ...

    def feed_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Call with a tree, and store nothing; return the logits [len(tokens), vocab]."""
        ...

    def keep(self, row: int) -> None:
        """Feed the token of a row of the last tree, without a call."""
        ...


@dataclass(frozen=True)
class Lookahead:
    """The sizes of lookahead decoding; those of ExecuTorch's runner are 5, 4, 4.

    `ngram` is N, at least 2; `window` is W, and without a window (0) all n-grams come from prompt
    and text; `verifications` is G, and without any (0) each call gives one token. Raises
    HarnessError for other numbers.
    """

    ngram: int
    window: int
    verifications: int

    def __post_init__(self) -> None:
        if self.ngram < 2 or self.window < 0 or self.verifications < 0:
            raise HarnessError(
                f"lookahead {self} is impossible: the n-gram size is 2 or more, the window and the "
                "verifications are 0 or more"
            )

    def __str__(self) -> str:
        return f"{self.ngram},{self.window},{self.verifications}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "N,W,G"; raises HarnessError for anything else."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise HarnessError(
                f"lookahead '{clip(text, 40)}' is not N,W,G (n-gram size, window, "
                "verifications), for example 5,4,4"
            )
        return cls(*map(int, match.groups()))

    @property
    def rows(self) -> int:
        """The number of tokens that a call needs: window, or the root alone, and branches."""
        return max(1, self.window * (self.ngram - 1)) + self.verifications * (self.ngram - 1)

    def check(self, session: object) -> TreeFeeder:
        """Return the session; HarnessError if its method cannot be called like this."""
        if not isinstance(session, TreeFeeder):
            raise HarnessError(
                "lookahead decoding chooses the mask and the position of each token: it needs an "
                "artifact with both as inputs, such as a single-method export by ExecuTorch's "
                "static language model exporter"
            )
        available = session.tree_rows()
        if self.rows > available:
            raise HarnessError(
                f"lookahead {self} needs {self.rows} tokens per call, max(1, W * (N - 1)) + G * "
                f"(N - 1), and the method takes {available}: {self._advice(available)}"
            )
        return session

    def _advice(self, available: int) -> str:
        """Return numbers near to these that fit, as a sentence."""
        ngram = min(self.ngram, available // 2 + 1)
        if ngram < 2:
            return f"export with an input length of at least {self.rows}"
        pairs = available // (ngram - 1)
        verifications = max(1, min(self.verifications, pairs // 2))
        window = max(1, min(self.window, pairs - verifications))
        return f"{Lookahead(ngram, window, verifications)} fits"


class LookaheadDecoder:
    """Decodes one sequence on a session; keeps the window and the n-grams.

    `text` has the tokens of the sequence, the prompt and the first new token.
    """

    def __init__(self, session: TreeFeeder, lookahead: Lookahead, text: Sequence[int]) -> None:
        self._session, self._sizes = session, lookahead
        n, window = lookahead.ngram, lookahead.window
        self._ngrams = NGrams(lookahead.verifications)
        for start in range(len(text) - n + 1):
            self._ngrams.add(text[start : start + n])
        self._text = list(text[-n:])  # the end of the text
        # The guesses to begin with are arbitrary: tokens of the text.
        self._levels = [
            [text[(level * window + column) % len(text)] for column in range(window)]
            for level in range(n - 1)
        ]

    def steps(
        self, limit: int, stop_tokens: Collection[int], sampler: Callable[[torch.Tensor], int]
    ) -> Iterator[tuple[int, float]]:
        """Yield the next tokens, at most `limit`, each with its share of its call's seconds.

        Before a token is yielded, the one before it is fed, and no later one.
        """
        while limit:
            start = time.perf_counter()
            path = self._call(sampler)[: min(limit, self._session.room)]
            ends = (i for i, (_, token) in enumerate(path, 1) if token in stop_tokens)
            path = path[: next(ends, len(path))]
            seconds = (time.perf_counter() - start) / len(path)
            for row, token in path:
                self._session.keep(row)
                self._append(token)
                limit -= 1
                yield token, seconds

    def _call(self, sampler: Callable[[torch.Tensor], int]) -> list[tuple[int, int]]:
        """Call the method once; return the accepted rows, each with the token after it."""
        free = self._session.tree_rows() - len(self._session.tail)
        tokens, parents = [self._text[-1]], [-1]
        # Near the end of the context the tail takes the rows of the window.
        has_window = self._sizes.window > 0 and self._sizes.rows <= free
        if has_window:
            tokens, parents = self._window()
        children = self._add_branches(tokens, parents, free)
        logits = self._session.feed_tree(tokens, parents)
        if has_window:
            self._move_window(tokens, logits)
        path, row = [], 0
        while True:
            token = sampler(logits[row])
            path.append((row, token))
            following = self._child(children, row, token)
            if following is None:
                return path
            row = following

    def _child(self, children: Mapping[tuple[int, int], int], row: int, token: int) -> int | None:
        """Return the row that holds the token that the model gives after a row, if there is one."""
        return children.get((row, token))

    def _window(self) -> tuple[list[int], list[int]]:
        """Return the tokens and the parents of the window, whose first row is the root."""
        n, window = self._sizes.ngram, self._sizes.window
        tokens = [token for level in self._levels for token in level]
        tokens[0] = self._text[-1]
        above = range(window * (n - 2))  # the parents of all levels but the first
        return tokens, [*range(-1, window - 1), *above]

    def _add_branches(
        self, tokens: list[int], parents: list[int], free: int
    ) -> dict[tuple[int, int], int]:
        """Add the n-grams of the root to a tree of at most `free` rows.

        Return the row of each branch's token, by the row before it and the token.
        """
        children: dict[tuple[int, int], int] = {}
        for ngram in self._ngrams.after(tokens[0]):
            row = 0
            for token in ngram:
                if (row, token) not in children:
                    if len(tokens) == free:
                        break
                    children[row, token] = len(tokens)
                    tokens.append(token)
                    parents.append(row)
                row = children[row, token]
        return children

    def _move_window(self, tokens: Sequence[int], logits: torch.Tensor) -> None:
        """Learn the n-gram of each column, and move the levels up."""
        n, window = self._sizes.ngram, self._sizes.window
        last = logits[window * (n - 2) : window * (n - 1)].argmax(dim=-1).tolist()
        for column in range(window):
            self._ngrams.add([*tokens[column : window * (n - 1) : window], last[column]])
        self._levels = [*self._levels[1:], last]

    def _append(self, token: int) -> None:
        """Learn the n-gram that a new token of the text completes."""
        self._text = [*self._text, token][-self._sizes.ngram :]
        if len(self._text) == self._sizes.ngram:
            self._ngrams.add(self._text)


class NGrams:
    """The newest n-grams by their first token, at most `capacity` for each."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._after: dict[int, dict[tuple[int, ...], None]] = {}

    def add(self, ngram: Sequence[int]) -> None:
        """Add an n-gram, or make one that is known the newest."""
        first, rest = ngram[0], tuple(ngram[1:])
        known = self._after.setdefault(first, {})
        known.pop(rest, None)
        known[rest] = None
        if len(known) > self._capacity:
            del known[next(iter(known))]

    def after(self, first: int) -> list[tuple[int, ...]]:
        """Return the rests of the n-grams that begin with a token, the newest first."""
        return [*self._after.get(first, ())][::-1]


def lookahead_steps(
    session: TreeFeeder,
    lookahead: Lookahead,
    prompt_tokens: Sequence[int],
    limit: int,
    stop_tokens: Collection[int],
    sampler: Callable[[torch.Tensor], int],
) -> Iterator[tuple[int, float]]:
    """Feed a prompt, then yield the next tokens with their seconds, as `LookaheadDecoder.steps`."""
    start = time.perf_counter()
    token = sampler(session.prefill(prompt_tokens))
    yield token, time.perf_counter() - start
    decoder = LookaheadDecoder(session, lookahead, [*prompt_tokens, token])
    yield from decoder.steps(limit - 1, stop_tokens, sampler)
