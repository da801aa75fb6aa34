"""Feeds tokens to a method of another make: it keeps its caches, is handed them, or has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from harness.artifact import Artifact
from harness.errors import HarnessError, NotInstalledError
from harness.generate.interface import Interface, read_interface
from harness.generate.layout import describes_model
from harness.generate.session import Session
from harness.runtimes.base import Runtime


def open_session(artifact: Artifact, runtime: Runtime) -> Session | CallSession:
    """Start a session; the artifact's constants, or its inputs' names and shapes, say how.

    Raises NotInstalledError if the runtime cannot be used here, and HarnessError if the artifact is
    not called like a language model.
    """
    if describes_model(artifact.constants):
        return Session.open(artifact, runtime)
    return CallSession.open(artifact, runtime)


class CallSession:
    """One sequence; `layout` says how the method is called, `calls` how often it was.

    Where no number of tokens fits, a call is padded, if it returns the logits of each token. Later
    calls overwrite what padding left in the caches.
    """

    def __init__(self, artifact: Artifact, runtime: Runtime, layout: Interface) -> None:
        self.layout = layout
        self._artifact, self._runtime = artifact, runtime
        self.reset()

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """Read how to call an artifact, and load its method; raises as `open_session` does."""
        if reason := runtime.unavailable():
            raise NotInstalledError(f"runtime {runtime.name} cannot be used here: {reason}")
        return cls(artifact, runtime, read_interface(artifact))

    def reset(self) -> None:
        """Forget the sequence: load the method again, because its states are new then."""
        self._method = self._runtime.load(self._artifact, self.layout.method)
        self._caches: dict[int, torch.Tensor] = {}
        self._tokens: list[int] = []
        self.calls = 0

    def rewind(self, position: int) -> None:
        """Forget all tokens but the first `position` ones: feed these again, to new states.

        Raises HarnessError for a position that is negative or after the tokens that were fed, and
        for a number of tokens that the method cannot be called with.
        """
        if not 0 <= position <= self.position:
            raise HarnessError(
                f"position {position} is not from 0 to {self.position}, the number of tokens that "
                "were fed: a session can only go back"
            )
        tokens, calls = self._tokens[:position], self.calls
        self.reset()
        self.calls = calls
        if tokens:
            self.prefill(tokens)

    @property
    def position(self) -> int:
        """The number of tokens that have been fed."""
        return len(self._tokens)

    @property
    def room(self) -> int:
        """The number of tokens that can still be fed before the context is full."""
        return self.layout.context - self.layout.start - len(self._tokens)

    def decode(self, token: int) -> torch.Tensor:
        """Feed one token; return the logits [vocab] after it."""
        return self.prefill([token])

    def prefill(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed tokens in as few calls as possible; return the logits [vocab] of the last one.

        Raises HarnessError for no tokens, for more than the context has room for, for a token
        outside the vocabulary, and for a number of tokens that the method cannot be called with.
        """
        self._check(tokens)
        if not self.layout.remembers:
            self._tokens += tokens
            return self._call(self._tokens, 0)
        rest, logits = list(tokens), torch.empty(0)
        while rest:
            position = self.layout.start + len(self._tokens)
            fitting = [n for n in self.layout.lengths(position) if n <= len(rest)]
            count = fitting[-1] if fitting else len(rest)
            logits = self._call(rest[:count], position)
            self._tokens += rest[:count]
            rest = rest[count:]
        return logits

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise HarnessError("the prompt is empty: it has no tokens to feed")
        if len(tokens) > self.room:
            raise HarnessError(
                f"{len(tokens)} tokens after {len(self._tokens)} are more than the model's context "
                f"of {self.layout.context}: shorten the prompt, or export with a longer context"
            )
        for token in tokens:
            if not 0 <= token < self.layout.vocab_size:
                raise HarnessError(
                    f"token {token} is outside the model's vocabulary of {self.layout.vocab_size}"
                )

    def _call(self, tokens: Sequence[int], position: int) -> torch.Tensor:
        """Call the method with all tokens, padded where it must be; return the last logits."""
        lengths = self.layout.lengths(position)
        fitting = [n for n in lengths if n == len(tokens)]
        if self.layout.can_pad:
            fitting += [n for n in lengths if n > len(tokens)]
        if not fitting:
            raise HarnessError(
                f"method '{self.layout.method}' cannot be called with {len(tokens)} tokens at "
                f"position {position}: {self._takes(lengths)}"
            )
        self.calls += 1
        padded = [*tokens, *[0] * (fitting[0] - len(tokens))]
        outputs = self._method(*self.layout.arguments(padded, position, self._caches))
        self._caches = {given: outputs[made] for given, made in self.layout.caches}
        logits = outputs[self.layout.logits].reshape(-1, self.layout.vocab_size)
        return logits[len(tokens) - 1 if self.layout.full_logits else -1]

    def _takes(self, lengths: Sequence[int]) -> str:
        if not lengths:
            return "no number of tokens fits its inputs there"
        span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        why = "" if self.layout.full_logits else ", and returns the logits of the last one only"
        return f"it takes {span}{why}"
