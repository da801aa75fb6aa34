"""The loop that continues a prompt, the choice of tokens, and their text.

    tokenizer = load_tokenizer(path)              tokenizer.py, vocabulary.py
    session = Session.open(file)                  session.py, layout.py, phase.py; or
    session = open_session(artifact, runtime)     calls.py, interface.py, for other makes too
    prompt = tokenizer.encode("Today is")
    for text, _ in generate_text(session, tokenizer, prompt, 100):
        print(text, end="")

`generate_text` decodes the tokens of `generate`, which calls `session.prefill` once, then
`session.decode` for every token; each of them calls a method of the artifact. With a `Lookahead`
(lookahead.py), one call can give several tokens. Only `session` and `make_sampler` import torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from harness.errors import HarnessError
from harness.generate.lookahead import Lookahead, lookahead_steps

if TYPE_CHECKING:
    import torch

    from harness.generate.tokenizer import Tokenizer

    Sampler = Callable[[torch.Tensor], int]  # logits [vocab], any floating dtype -> token

Finish = Literal["stop_token", "max_new_tokens", "context"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Feeder(Protocol):
    """One sequence of tokens: a `Session`, or a `CallSession` of another make's artifact."""

    @property
    def room(self) -> int:
        """The number of tokens that can still be fed."""
        ...

    def prefill(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed a prompt; return the logits [vocab] of its last token."""
        ...

    def decode(self, token: int) -> torch.Tensor:
        """Feed one token; return the logits [vocab] after it."""
        ...


@dataclass(frozen=True)
class GeneratedToken:
    """A new token; `seconds` is the time of the prefill for the first one, else of a decode step.

    Tokens of one call of lookahead decoding share its time. Only the last token has a `finish`, the
    reason why it is the last: it is a stop token (yielded, but without text), it is the last one
    requested, or the context is full and the token cannot be fed.
    """

    token: int
    seconds: float
    finish: Finish | None


def greedy(logits: torch.Tensor) -> int:
    """Return the first token with the largest logit, without rounding.

    Raises HarnessError if a logit is NaN or infinite, because the model then has no answer.
    """
    _require_finite(logits)
    return int(logits.argmax())


def make_sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """Return `greedy` at temperature 0, else a sampler of softmax(logits / temperature).

    It draws from the nucleus: the smallest set of most probable tokens whose probability reaches
    `top_p` (Holtzman et al., 2020), which has at least one token. It computes in fp64; the same
    seed draws the same tokens.
    """
    if temperature == 0:
        return greedy
    import torch

    generator = torch.Generator().manual_seed(seed)

    def sample(logits: torch.Tensor) -> int:
        _require_finite(logits)
        scaled = logits.double() - logits.double().max()  # before dividing: it cannot overflow
        probabilities, tokens = torch.softmax(scaled / temperature, dim=-1).sort(
            descending=True, stable=True
        )
        before = probabilities.cumsum(dim=-1) - probabilities
        nucleus = torch.where(before < top_p, probabilities, 0.0)
        nucleus[0] = probabilities[0]
        return int(tokens[torch.multinomial(nucleus, 1, generator=generator)])

    return sample


def generate(
    session: Feeder,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    sampler: Sampler = greedy,
    lookahead: Lookahead | None = None,
) -> Iterator[GeneratedToken]:
    """Feed the prompt, then yield up to `max_new_tokens` tokens; the last has a `finish`.

    Generation continues at the session's position: reset the session for a new sequence. With
    `lookahead`, the tokens are the same, from fewer calls. Raises HarnessError for an empty prompt,
    for one longer than the remaining context, and for a lookahead that the artifact or the sampler
    does not allow.
    """
    if lookahead is None:
        steps = _steps(session, prompt_tokens, sampler)
    elif sampler is not greedy:
        raise HarnessError(
            "lookahead decoding is greedy: it accepts the token with the largest logit, and "
            "cannot sample; leave out the temperature, or lookahead"
        )
    else:
        feeder = lookahead.check(session)
        steps = lookahead_steps(
            feeder, lookahead, prompt_tokens, max_new_tokens, stop_tokens, sampler
        )
    for count, (token, seconds) in zip(range(1, max_new_tokens + 1), steps, strict=False):
        finish: Finish | None = None
        if token in stop_tokens:
            finish = "stop_token"
        elif count == max_new_tokens:
            finish = "max_new_tokens"
        elif session.room == 0:
            finish = "context"
        yield GeneratedToken(token, seconds, finish)
        if finish is not None:
            return


def _steps(
    session: Feeder, prompt_tokens: Sequence[int], sampler: Sampler
) -> Iterator[tuple[int, float]]:
    """Feed the prompt, then each token that was yielded; yield tokens with their seconds."""
    step = partial(session.prefill, prompt_tokens)
    while True:
        start = time.perf_counter()
        token = sampler(step())
        yield token, time.perf_counter() - start
        step = partial(session.decode, token)


def generate_text(
    session: Feeder,
    tokenizer: Tokenizer,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    sampler: Sampler = greedy,
    lookahead: Lookahead | None = None,
) -> Iterator[tuple[str, GeneratedToken]]:
    """Generate as `generate` does, up to a stop token; yield the new text with each token.

    The text of a token is empty while it ends inside a character, and that of a stop token is.
    """
    stream = TextStream(tokenizer.decode, before=prompt_tokens)
    stops = tokenizer.stop_tokens
    for step in generate(session, prompt_tokens, max_new_tokens, stops, sampler, lookahead):
        text = "" if step.finish == "stop_token" else stream.push(step.token)
        yield text + (stream.end() if step.finish else ""), step


class TextStream:
    """Turns tokens into pieces of text; joined, the pieces are the text of all tokens.

    A character may need several tokens, and a tokenizer may drop a space before the first token
    that it decodes. Each piece is therefore the difference of two decodings that start at the same
    earlier token, and `push` holds text back while it ends inside a character. `before` has the
    tokens before the first one: the end of the prompt.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._known = list(before[-8:])  # enough for a character and a space before it
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that this token completes, empty while it ends inside a character."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith(_REPLACEMENT):
            return ""
        if text:
            self._known, self._pending = self._pending, []
        return text

    def end(self) -> str:
        """Return the text that was held back, with U+FFFD for an incomplete character."""
        text = self._new_text()
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._known)
        return self._decode([*self._known, *self._pending])[len(before) :]


def _require_finite(logits: torch.Tensor) -> None:
    bad = int((~logits.isfinite()).sum())
    if bad:
        from harness.runtimes import REFERENCE

        raise HarnessError(
            f"{bad:,} of {logits.numel():,} logits are NaN or infinite: the model overflowed, or "
            f"its weights are damaged; `harness run --runtime {REFERENCE}` computes without "
            "fp16 range"
        )
