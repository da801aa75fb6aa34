"""Feeds tokens and returns logits; keeps the caches, the masks and the position of one sequence.

A step calls one method with up to `input_len` tokens and writes their keys and values into the
caches, in place, at the positions of the valid tokens only. Tokens beyond the end of the caches are
not stored: they are the *tail* and are fed again with the next tokens, since the tokens of one call
see each other. A single-method export, whose caches hold `max_context - input_len` positions,
therefore runs to its last position without wrapping around.

A call of a full-logit method may also have a tree of tokens: each sees its ancestors, at the
position of its depth. `feed_tree` stores nothing; `keep` stores the tokens that turn out right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch

from harness.artifact import Artifact, open_artifact
from harness.errors import HarnessError, NotInstalledError
from harness.generate.caches import Caches, CacheStyle
from harness.generate.inputs import BoundMethod
from harness.generate.layout import ModelLayout, method_names, parse_layout
from harness.generate.phase import LOGITS_OUTPUT, Phase
from harness.runtimes import default_runtime, get_runtime

if TYPE_CHECKING:
    from harness.models.model import Freqs
    from harness.runtimes.base import Method, Runtime

PhaseName = Literal["prefill", "decode"]


@dataclass(frozen=True)
class _Tree:
    """A call's tree of tokens, and its outputs; the rows of the tree begin at row `first`."""

    tokens: Sequence[int]
    outputs: Sequence[torch.Tensor]
    first: int


class Session:
    """One sequence on loaded methods; call `reset()` before the next one, so that no cache leaks.

    `calls` is the number of calls of a method since the last reset.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        layout: ModelLayout,
        style: CacheStyle = "smart_mask",
    ) -> None:
        self.layout, self.methods = layout, methods
        tables = layout.freqs_cos, layout.freqs_sin
        prefill = BoundMethod(methods[layout.prefill.method], layout.prefill, tables)
        decode = prefill
        if layout.decode != layout.prefill:
            decode = BoundMethod(methods[layout.decode.method], layout.decode, tables)
        self._bound: dict[PhaseName, BoundMethod] = {"prefill": prefill, "decode": decode}
        self._caches = Caches(layout, style)
        self._tokens: list[int] = []
        self._stored = 0  # of the tokens; the others are the tail
        self._tree: _Tree | None = None
        self.calls = 0

    @classmethod
    def open(
        cls,
        artifact: Artifact | str | Path,
        runtime: Runtime | str | None = None,
        tables: Freqs | None = None,
        style: CacheStyle = "smart_mask",
    ) -> Self:
        """Load an artifact's methods on a runtime, parse its layout, and start a session.

        `artifact` may be a path, `runtime` a name; without it, this machine's default runtime
        executes. `tables`, cosines and sines of the same length, replace the artifact's own;
        `style` says where caches hold a position (`caches.py`). Raises NotInstalledError if the
        runtime cannot be used here, and HarnessError if the artifact does not describe a language
        model.
        """
        if isinstance(artifact, str | Path):
            artifact = open_artifact(artifact)
        if isinstance(runtime, str | None):
            runtime = get_runtime(runtime or default_runtime())
        if reason := runtime.unavailable():
            raise NotInstalledError(f"runtime {runtime.name} cannot be used here: {reason}")
        with _naming(artifact.path):
            names = method_names(artifact.constants)
            missing = [name for name in names if name not in artifact.methods]
            if missing:
                raise HarnessError(
                    f"its constants describe a method '{missing[0]}' that is not among its methods "
                    f"({', '.join(artifact.methods)})"
                )
            _refuse_states(artifact)
        methods = {name: runtime.load(artifact, name) for name in names}
        with _naming(artifact.path):
            layout = parse_layout(artifact.constants, methods)
        if tables is not None:
            layout = replace(layout, freqs_cos=tables[0], freqs_sin=tables[1])
        return cls(methods, layout, style)

    @property
    def position(self) -> int:
        """The number of tokens that have been fed."""
        return len(self._tokens)

    @property
    def tail(self) -> list[int]:
        """The tokens for which no cache has room: each call feeds them again."""
        return self._tokens[self._stored :]

    @property
    def room(self) -> int:
        """The number of tokens that can still be fed before the context is full."""
        return self.layout.context - self.position

    def keys(self, layer: int) -> torch.Tensor:
        """Copy a layer's stored keys, [n_kv_heads, min(position, its cache's length), head_dim].

        They are in the order of their positions; a sliding window holds the newest ones.
        """
        return self._caches.in_order(self._caches.keys, layer)

    def values(self, layer: int) -> torch.Tensor:
        """Copy a layer's stored values, in the order and shape of `keys`."""
        return self._caches.in_order(self._caches.values, layer)

    def reset(self) -> None:
        """Forget the sequence: empty caches, closed masks, position 0, no calls."""
        self.rewind(0)
        self.calls = 0

    def rewind(self, position: int) -> None:
        """Forget all tokens but the first `position` ones; the next token is fed there.

        If a sliding window has lost what that token sees, the first tokens are fed again. Raises
        HarnessError for a position that is negative or after the tokens that were fed.
        """
        if not 0 <= position <= self.position:
            raise HarnessError(
                f"position {position} is not from 0 to {self.position}, the number of tokens that "
                "were fed: a session can only go back"
            )
        tokens, kept = self._tokens[:position], min(position, self._stored)
        is_held = self._caches.can_forget(kept)
        self._stored = kept if is_held else 0
        self._tokens = tokens if is_held else []
        self._tree = None
        self._caches.forget(self._stored)
        if not is_held:
            self.prefill(tokens)

    def prefill(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed a prompt of any length in chunks; return the logits [vocab] of its last token."""
        return self._prefill(tokens)[-1][-1]

    def prefill_all(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed a prompt in chunks; return the logits [len(tokens), vocab] of every token.

        Raises HarnessError if the export returns the last token's logits only.
        """
        if not self.layout.full_logits:
            raise HarnessError(
                f"method '{self.layout.prefill.method}' returns the logits of the last token only: "
                "logits of every token need a single-method export"
            )
        return torch.cat(self._prefill(tokens))

    def decode(self, token: int) -> torch.Tensor:
        """Feed one token; return the logits [vocab] after it."""
        return self.feed([token], "decode")[-1]

    def feed(self, tokens: Sequence[int], phase: PhaseName) -> torch.Tensor:
        """Call a phase's method with one chunk of tokens, 1 to `input_len` of them.

        Return logits [len(tokens), vocab], or [1, vocab] of the last token if the method returns no
        others. Raises HarnessError for a chunk or a context that is too long, and for an unknown
        token.
        """
        bound = self._bound[phase]
        self._require_feedable(tokens, bound.phase)
        n_tail = len(self.tail)
        outputs = self._call(bound, tokens)
        self._store(bound.phase, outputs, tokens, 0)
        logits = outputs[LOGITS_OUTPUT]
        if not bound.phase.full_logits:
            return logits.reshape(1, -1)
        return logits[0, n_tail : n_tail + len(tokens)]

    def feed_each(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed one chunk; return the logits [len(tokens), vocab] after each token of it.

        A method that returns no other logits than the last valid token's is called for each.
        Raises HarnessError as `feed` does.
        """
        bound = self._bound["prefill"]
        if bound.phase.full_logits:
            return self.feed(tokens, "prefill")
        self._require_feedable(tokens, bound.phase)
        rows, first = [], len(self.tail)
        for last in range(first, first + len(tokens)):
            outputs = self._call(bound, tokens, last=last)
            rows.append(outputs[LOGITS_OUTPUT].reshape(-1))
        self._store(bound.phase, outputs, tokens, 0)
        return torch.stack(rows)

    def tree_rows(self) -> int:
        """Return how many tokens a call of `feed_tree` takes, those of the tail included.

        Raises HarnessError if the export returns the last token's logits only.
        """
        if not self.layout.full_logits:
            raise HarnessError(
                f"method '{self.layout.prefill.method}' returns the logits of the last token only: "
                "lookahead decoding needs those of every token, as a single-method export has them"
            )
        return self.layout.prefill.input_len

    def feed_tree(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Call the method with a tree of tokens; return the logits [len(tokens), vocab] of each.

        `parents` has the index of each token's parent, which comes before it; -1 means the
        last token that was fed. Nothing is stored until `keep`. Raises HarnessError for more tokens
        than the method takes, and for an unknown token.
        """
        bound = self._bound["prefill"]
        self.tree_rows()
        self._require_callable(tokens, bound.phase)
        first = len(self.tail)
        after_tail = (first + parent for parent in parents)
        outputs = self._call(bound, tokens, [*range(-1, first - 1), *after_tail])
        self._tree = _Tree(tokens, outputs, first)
        return outputs[LOGITS_OUTPUT][0, first : first + len(tokens)]

    def keep(self, row: int) -> None:
        """Feed the token of a row of the last `feed_tree`, from its outputs and without a call.

        The rows must be a path: each is a child of the row that was kept before it. Raises
        HarnessError without room, and if anything else was fed since.
        """
        if self._tree is None:
            raise HarnessError("no tree was fed last, so none of its tokens can be kept")
        self._require_room(1)
        phase, tree = self._bound["prefill"].phase, self._tree
        self._store(phase, tree.outputs, [tree.tokens[row]], tree.first + row)

    def _prefill(self, tokens: Sequence[int]) -> list[torch.Tensor]:
        if not tokens:
            raise HarnessError("the prompt is empty: it has no tokens to feed")
        self._require_room(len(tokens))
        logits = []
        start = 0
        while start < len(tokens):
            size = self.layout.prefill.input_len - len(self.tail)
            logits.append(self.feed(tokens[start : start + size], "prefill"))
            start += size
        return logits

    def _require_room(self, n: int) -> None:
        if n > self.room:
            fed = f" after the {self.position} before it" if self.position else ""
            raise HarnessError(
                f"a prompt of {n} tokens{fed} is longer than the model's context of "
                f"{self.layout.context}: shorten it, or export with a longer context"
            )

    def _require_feedable(self, tokens: Sequence[int], phase: Phase) -> None:
        self._require_room(len(tokens))
        self._require_callable(tokens, phase)

    def _require_callable(self, tokens: Sequence[int], phase: Phase) -> None:
        longest = phase.input_len - len(self.tail)
        if not 1 <= len(tokens) <= longest:
            raise HarnessError(
                f"method '{phase.method}' takes 1 to {longest} tokens at position "
                f"{self.position}, not {len(tokens)}"
            )
        for token in tokens:
            if not 0 <= token < self.layout.vocab_size:
                raise HarnessError(
                    f"token {token} is outside the model's vocabulary of {self.layout.vocab_size}"
                )

    def _call(
        self,
        bound: BoundMethod,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        last: int | None = None,
    ) -> Sequence[torch.Tensor]:
        """Call a method with the tail and with tokens after it."""
        self._tree = None
        self.calls += 1
        return bound([*self.tail, *tokens], self._stored, self._caches, parents, last)

    def _store(
        self, phase: Phase, outputs: Sequence[torch.Tensor], tokens: Sequence[int], first: int
    ) -> None:
        """Store the updates from row `first` on for which the caches have room.

        Tokens for which they have none join the tail.
        """
        self._tokens += tokens
        count = min(self.position, self.layout.cache_len) - self._stored
        self._caches.store(phase, outputs, self._stored, first, count)
        self._stored += count


def _refuse_states(artifact: Artifact) -> None:
    """Raise HarnessError for states: a session's caches are inputs, and its reset clears these."""
    for delegate in (d for delegates in artifact.delegates.values() for d in delegates):
        if states := delegate.bundle.package.states(delegate.program_function):
            raise HarnessError(
                f"{delegate.where}: function '{delegate.program_function}' keeps its caches in "
                f"states ({', '.join(states)}); a session passes caches as inputs"
            )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except HarnessError as error:
        raise HarnessError(f"{path}: {error}") from error
