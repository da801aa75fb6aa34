"""Measures runtimes on a text: perplexity, and divergence from the oracle and agreement with it.

The tokens are cut into chunks that fill the context. A chunk starts from empty caches and each of
its positions predicts the token that follows; that of the last position begins the next chunk. Each
token but the first is therefore predicted once, from at most `context` tokens before it.

A full-logit artifact is fed by its prefill. One that returns the last token's logits only is fed
token by token, so that its decode function is measured.

Standard errors are those of a mean over the predicted tokens, which they take for independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from harness.errors import ArtifactError, HarnessError
from harness.generate.calls import CallSession, open_session
from harness.generate.layout import windows_of
from harness.generate.session import Session
from harness.models.model import Oracle
from harness.runtimes import get_runtime
from harness.subject import Subject
from harness.text import counted

MAX_CHUNK = 2048  # tokens, unless a user asks for more: the oracle keeps [chunk, vocab] in fp64
_ROWS = 32  # of logits that are decoded before they are scored, or reported as progress

Progress = Callable[[str, int, int], None]  # a stage, and how many of how many tokens are done
Reference = Callable[[torch.Tensor], torch.Tensor]  # tokens [T] -> logits [T, vocab], fp64


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens, or a function of one, and its standard error."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Estimate:
        """Return the mean of values [tokens], of two at least."""
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)))

    def exponential(self) -> Estimate:
        """Return e to the power of this mean, with the standard error of the first order."""
        value = math.exp(min(self.value, 700.0))  # a model that is wrong everywhere: fp64 ends here
        return Estimate(value, value * self.standard_error)


@dataclass
class _Scores:
    """Values of each predicted token [tokens], in fp64; the last three need an oracle.

    `loss` is minus the log probability of the token, in nats, and `excess` what it is above the
    oracle's; `divergence` is the KL divergence from the oracle's distribution, in nats; `agrees` is
    1 where both have the same most probable token.
    """

    loss: torch.Tensor
    excess: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    divergence: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    agrees: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def joined(cls, parts: Sequence[_Scores]) -> _Scores:
        names = ("loss", "excess", "divergence", "agrees")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def figures(self) -> dict[str, Estimate]:
        figures = {"perplexity": Estimate.of(self.loss).exponential()}
        if len(self.excess):
            figures["perplexity_over_oracle"] = Estimate.of(self.excess).exponential()
            figures["kl_divergence"] = Estimate.of(self.divergence)
            figures["top1_agreement"] = Estimate.of(self.agrees)
        return figures


@dataclass(frozen=True)
class TextResult:
    """The figures of the oracle and of each runtime, over the `predicted` tokens so far."""

    predicted: int
    oracle: dict[str, Estimate] | None
    runtimes: dict[str, dict[str, Estimate]]


class TextMeasure:
    """A subject's runtimes on the chunks of a text; `context` tokens fill one.

    `oracle_lacks` says why the oracle is missing, None when it is not. The oracle has the
    artifact's weights or, with a checkpoint, those of the checkpoint after quantization; with
    `unquantized`, before it. Without `has_oracle`, the perplexity alone is measured.

    Raises HarnessError for a context that the model does not have, NotInstalledError for a runtime
    that cannot be used here.
    """

    def __init__(
        self,
        subject: Subject,
        runtimes: Sequence[str],
        context: int | None = None,
        unquantized: bool = False,
        has_oracle: bool = True,
    ) -> None:
        self._sessions = {name: _session(subject, name) for name in runtimes}
        room = min(session.room for session in self._sessions.values())
        if context is not None and not 2 <= context <= room:
            raise HarnessError(f"--context {context}: a chunk has 2 to {room} tokens, the context")
        self.context = context or min(room, MAX_CHUNK)
        self.mode = next(iter(self._sessions.values())).layout.mode
        self.vocab_size = next(iter(self._sessions.values())).layout.vocab_size
        self._oracle: Reference | None = None
        self.oracle_lacks: str | None = None
        if has_oracle:
            self._oracle, self.oracle_lacks = _reference(subject, unquantized)

    def measure(
        self, tokens: Sequence[int], progress: Progress | None = None
    ) -> Iterator[TextResult]:
        """Yield the result after each chunk, so that an interruption keeps what is measured.

        Raises HarnessError for fewer than three tokens, and for logits that are not finite.
        """
        if len(tokens) < 3:
            raise HarnessError(
                f"the text has {counted(len(tokens), 'token')}: three at least are needed"
            )
        parts: dict[str, list[_Scores]] = {name: [] for name in ("oracle", *self._sessions)}
        starts = range(0, len(tokens) - 1, self.context)
        for number, start in enumerate(starts):
            chunk = tokens[start : start + self.context + 1]
            done = _Steps(progress, f"chunk {number + 1} of {len(starts)}", len(tokens) - 1)
            scores = self._score_chunk(chunk, start, done)
            for name, score in scores.items():
                parts[name].append(score)
            joined = {name: _Scores.joined(parts[name]).figures() for name in scores}
            yield TextResult(start + len(chunk) - 1, joined.pop("oracle", None), joined)

    def _score_chunk(self, chunk: Sequence[int], start: int, done: _Steps) -> dict[str, _Scores]:
        """Return the scores of the tokens after a chunk's first, by runtime and of the oracle."""
        fed, following = chunk[:-1], torch.tensor(chunk[1:])
        scores, wanted = {}, None
        if self._oracle is not None:
            done("oracle", start)
            wanted = self._oracle(torch.tensor(fed))
            scores["oracle"] = _Scores(_losses(wanted, following))
        for name, session in self._sessions.items():
            session.reset()
            parts, first = [], 0
            for logits in all_logits(session, fed):
                done(name, start + first)
                rows = slice(first, first + len(logits))
                require_finite(logits, name, start + first)
                parts.append(
                    _score(logits, following[rows], None if wanted is None else wanted[rows])
                )
                first += len(logits)
            scores[name] = _Scores.joined(parts)
        return scores


@dataclass(frozen=True)
class _Steps:
    """Progress within a chunk, in tokens of the text."""

    progress: Progress | None
    chunk: str
    total: int

    def __call__(self, name: str, position: int) -> None:
        if self.progress is not None:
            self.progress(f"{self.chunk}: {name}", position, self.total)


def feeds_all(session: Session | CallSession) -> bool:
    """Return whether one call gives the logits of all tokens that it is fed."""
    return isinstance(session, Session) and session.layout.full_logits


def all_logits(session: Session | CallSession, tokens: Sequence[int]) -> Iterator[torch.Tensor]:
    """Feed tokens after the session's position; yield the logits after each, in pieces [n, vocab].

    Raises HarnessError as the session does.
    """
    if isinstance(session, Session) and feeds_all(session):
        length = session.layout.prefill.input_len
        for start in range(0, len(tokens), length):
            yield session.prefill_all(tokens[start : start + length])
        return
    for start in range(0, len(tokens), _ROWS):
        yield torch.stack([session.decode(token) for token in tokens[start : start + _ROWS]])


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the log probabilities of logits [..., vocab], in fp64 and in nats."""
    return torch.log_softmax(logits.double(), -1)


def _session(subject: Subject, runtime: str) -> Session | CallSession:
    """Return a new session; of a language model, the methods are those that the subject loaded."""
    if subject.is_language_model:
        return subject.session(runtime)
    return open_session(subject.artifact, get_runtime(runtime))


def _reference(subject: Subject, unquantized: bool) -> tuple[Reference | None, str | None]:
    """Return the oracle, or why there is none; the first position of a chunk is position 0."""
    if unquantized and subject.checkpoint is None:
        raise HarnessError("unquantized weights are those of a checkpoint: give --checkpoint too")
    if subject.is_language_model and not unquantized:
        try:
            _ = subject.config
        except ArtifactError as error:
            if subject.checkpoint is not None:
                raise
            return None, str(error)
        return lambda tokens: subject.reference(tokens)[0], None
    if subject.checkpoint is None or subject.params is None:
        return None, "no constants describe the model: give --checkpoint and --params"
    if not unquantized:
        return None, (
            "no constants tell how the weights are quantized: give --unquantized, to compare with "
            "the checkpoint's own"
        )
    from harness.models.checkpoint import load_checkpoint
    from harness.models.config import load_params

    config = load_params(subject.params)
    windows = windows_of(subject.artifact.constants)
    oracle = Oracle(config, load_checkpoint(subject.checkpoint, config), windows=windows)
    return lambda tokens: oracle(tokens)[0], None


def _score(logits: torch.Tensor, following: torch.Tensor, wanted: torch.Tensor | None) -> _Scores:
    """Score logits [n, vocab] by the tokens [n] that follow, and beside the oracle's logits."""
    if wanted is None:
        return _Scores(_losses(logits, following))
    have, want = log_probabilities(logits), log_probabilities(wanted)
    losses = [-_taken(table, following) for table in (have, want)]
    # The sum cannot be negative; fp64 makes some of its values -1e-17.
    divergence = (want.exp() * (want - have)).sum(-1).clamp(min=0)
    agrees = (have.argmax(-1) == want.argmax(-1)).double()
    return _Scores(losses[0], losses[0] - losses[1], divergence, agrees)


def _losses(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    pairs = zip(logits.split(_ROWS), following.split(_ROWS), strict=True)
    return torch.cat([-_taken(log_probabilities(rows), tokens) for rows, tokens in pairs])


def _taken(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return table.gather(-1, tokens[:, None])[:, 0]


def require_finite(logits: torch.Tensor, runtime: str, position: int) -> None:
    """Raise HarnessError for logits [n, vocab] that are not finite; the first are at `position`."""
    bad = (~logits.isfinite()).any(-1).nonzero()
    if len(bad):
        raise HarnessError(
            f"{runtime}: the logits of position {position + int(bad[0])} of the text are NaN or "
            "infinite: the model overflowed, or its weights are damaged"
        )
