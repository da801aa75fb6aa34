"""Continue a prompt, token by token, with the time that each one took."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from harness.generate.sampling import Sampler, greedy
from harness.generate.session import Session

Finish = Literal["stop_token", "max_new_tokens", "context"]


@dataclass(frozen=True)
class GeneratedToken:
    """A new token; `seconds` is the prefill's time for the first one, a decode step's after.

    `finish` says why the last one is the last: a stop token (yielded, but no text), the number
    asked for, or a full context, in which the token could not be fed.
    """

    token: int
    seconds: float
    finish: Finish | None


def generate(
    session: Session,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    sampler: Sampler = greedy,
) -> Iterator[GeneratedToken]:
    """Feed the prompt, then yield up to `max_new_tokens` tokens; the last has a `finish`.

    Continues at the session's position: reset it for a new sequence. Raises HarnessError for an
    empty prompt, and for one longer than the context that is left.
    """
    step = partial(session.prefill, prompt_tokens)
    for count in range(1, max_new_tokens + 1):
        start = time.perf_counter()
        token = sampler(step())
        seconds = time.perf_counter() - start
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
        step = partial(session.decode, token)
