"""Feeds tokens and returns logits; keeps the caches, the masks and the position of one sequence.

A step calls one method with up to `input_len` tokens and writes their keys and values into the
caches, in place, at the positions of the valid tokens only. Tokens beyond the end of the caches are
not stored: they are the *tail* and are fed again with the next tokens, since the tokens of one call
see each other. A single-method export, whose caches hold `max_context - input_len` positions,
therefore runs to its last position without wrapping around.
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
from harness.generate.layout import ModelLayout, method_names, parse_layout
from harness.generate.phase import LOGITS_OUTPUT, TOKENS_INPUT, Phase
from harness.runtimes import default_runtime, get_runtime

if TYPE_CHECKING:
    from harness.models.model import Freqs
    from harness.runtimes.base import Method, Runtime

PhaseName = Literal["prefill", "decode"]

DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "float32", "float64", "bfloat16", "int32", "int64")
}


@dataclass(frozen=True)
class _Bound:
    """A phase, its method, and the session's own inputs, which are written in place."""

    phase: Phase
    method: Method
    tokens: torch.Tensor  # [1, input_len]
    mask: torch.Tensor  # [1, input_len, cache_len + input_len], 0 where visible, -inf where not
    last_valid_token_pos: torch.Tensor  # [1]


class Session:
    """One sequence on loaded methods; call `reset()` before the next one, so that no cache leaks.

    A floating cache starts in the declared dtype and is widened once to the dtype of the method's
    updates.
    """

    def __init__(self, methods: Mapping[str, Method], layout: ModelLayout) -> None:
        self.layout, self.methods = layout, methods
        single = layout.prefill == layout.decode
        prefill = _bind(methods, layout.prefill)
        decode = prefill if single else _bind(methods, layout.decode)
        self._bound: dict[PhaseName, _Bound] = {"prefill": prefill, "decode": decode}
        # A chunk's padding may extend beyond the tables: it then reads the last row again.
        longest = max(layout.prefill.input_len, layout.decode.input_len)
        self._cos, self._sin = (
            torch.cat([table, table[-1:].expand(longest, -1)])
            for table in (layout.freqs_cos, layout.freqs_sin)
        )
        shape = (1, layout.n_kv_heads, layout.cache_len, layout.head_dim)
        dtype = DTYPES[layout.prefill.cache_dtype]
        self._keys = [torch.zeros(shape, dtype=dtype) for _ in range(layout.n_layers)]
        self._values = [torch.zeros(shape, dtype=dtype) for _ in range(layout.n_layers)]
        self._stored = 0
        self._tail: list[int] = []

    @classmethod
    def open(
        cls,
        artifact: Artifact | str | Path,
        runtime: Runtime | str | None = None,
        tables: Freqs | None = None,
    ) -> Self:
        """Load an artifact's methods on a runtime, parse its layout, and start a session.

        `artifact` may be a path, `runtime` a name; without it, this machine's default runtime
        executes. `tables`, cosines and sines of the same length, replace the artifact's own. Raises
        NotInstalledError if the runtime cannot be used here, and HarnessError if the artifact does
        not describe a language model.
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
        return cls(methods, layout)

    @property
    def position(self) -> int:
        """The number of tokens that have been fed."""
        return self._stored + len(self._tail)

    @property
    def room(self) -> int:
        """The number of tokens that can still be fed before the context is full."""
        return self.layout.context - self.position

    def keys(self, layer: int) -> torch.Tensor:
        """Copy a layer's stored keys, [n_kv_heads, min(position, cache_len), head_dim]."""
        return self._keys[layer][0, :, : self._stored].clone()

    def values(self, layer: int) -> torch.Tensor:
        """Copy a layer's stored values, [n_kv_heads, min(position, cache_len), head_dim]."""
        return self._values[layer][0, :, : self._stored].clone()

    def reset(self) -> None:
        """Forget the sequence: empty caches, closed masks, position 0."""
        for cache in (*self._keys, *self._values):
            cache.zero_()
        for bound in self._bound.values():
            bound.mask[..., : self.layout.cache_len] = float("-inf")
        self._stored = 0
        self._tail = []

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
        window = [*self._tail, *tokens]
        outputs = bound.method(*self._arguments(bound, window))
        self._store(bound.phase, outputs, window)
        logits = outputs[LOGITS_OUTPUT]
        if not bound.phase.full_logits:
            return logits.reshape(1, -1)
        return logits[0, len(window) - len(tokens) : len(window)]

    def _prefill(self, tokens: Sequence[int]) -> list[torch.Tensor]:
        if not tokens:
            raise HarnessError("the prompt is empty: it has no tokens to feed")
        self._require_room(len(tokens))
        logits = []
        start = 0
        while start < len(tokens):
            size = self.layout.prefill.input_len - len(self._tail)
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
        longest = phase.input_len - len(self._tail)
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

    def _arguments(self, bound: _Bound, window: list[int]) -> list[torch.Tensor]:
        """Return the inputs in order; `window` starts at the first position that is not stored."""
        phase, start = bound.phase, self._stored
        bound.tokens.zero_()
        bound.tokens[0, : len(window)] = torch.tensor(window, dtype=bound.tokens.dtype)
        bound.last_valid_token_pos[0] = len(window) - 1
        inputs = {
            TOKENS_INPUT: bound.tokens,
            phase.mask: bound.mask,
            phase.cos: self._cos[start : start + phase.input_len],
            phase.sin: self._sin[start : start + phase.input_len],
        }
        if phase.last_valid_token_pos is not None:
            inputs[phase.last_valid_token_pos] = bound.last_valid_token_pos
        for layer, cache in enumerate(phase.caches):
            inputs[cache.k_in] = self._keys[layer]
            inputs[cache.v_in] = self._values[layer]
        return [inputs[index] for index in range(phase.n_inputs)]

    def _store(self, phase: Phase, outputs: Sequence[torch.Tensor], window: list[int]) -> None:
        """Store the updates for which the caches have room; the rest of the window is the tail."""
        count = min(len(window), self.layout.cache_len - self._stored)
        for layer, cache in enumerate(phase.caches):
            self._keys[layer] = self._write(self._keys[layer], outputs[cache.k_out], count)
            self._values[layer] = self._write(self._values[layer], outputs[cache.v_out], count)
        self._unmask(count)
        self._stored += count
        self._tail = window[count:]

    def _write(self, cache: torch.Tensor, update: torch.Tensor, count: int) -> torch.Tensor:
        """Write the first `count` positions; return the cache, widened if the update is wider."""
        cache = cache.to(torch.promote_types(cache.dtype, update.dtype))
        cache[:, :, self._stored : self._stored + count] = update[:, :, :count]
        return cache

    def _unmask(self, count: int) -> None:
        """Show `count` more positions of the caches to all later steps, in both phases."""
        for bound in self._bound.values():
            bound.mask[..., self._stored : self._stored + count] = 0


def _bind(methods: Mapping[str, Method], phase: Phase) -> _Bound:
    n = phase.input_len
    mask = torch.full((1, n, phase.cache_len + n), float("-inf"), dtype=DTYPES[phase.mask_dtype])
    mask[..., phase.cache_len :] = torch.full((n, n), float("-inf")).triu(diagonal=1)
    return _Bound(
        phase=phase,
        method=methods[phase.method],
        tokens=torch.zeros(1, n, dtype=DTYPES[phase.tokens_dtype]),
        mask=mask,
        last_valid_token_pos=torch.zeros(1, dtype=torch.int64),
    )


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
