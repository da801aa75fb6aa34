"""Drives a judge through a prompt: chunks that fill the caches, then tokens one by one."""

from __future__ import annotations

import torch

from harness.checks.subject import Subject
from harness.errors import HarnessError
from harness.generate.load import open_session
from harness.runtimes.base import Runtime

DECODED = 3
_SEED = 20_27


def drive(subject: Subject, judge: Runtime) -> None:
    """Feed seeded tokens to a judge's methods: two and a half chunks, so that the last one is
    padded and reads a filled cache, and some decode steps.

    Raises HarnessError when the artefact is no language model, or cannot be executed.
    """
    session = open_session(subject.artifact, judge)
    layout = session.layout
    count = max(1, min(5 * layout.prefill.input_len // 2, layout.context - DECODED))
    generator = torch.Generator().manual_seed(_SEED)
    size = min(count + DECODED, layout.context)
    tokens: list[int] = torch.randint(layout.vocab_size, (size,), generator=generator).tolist()
    if not tokens:
        raise HarnessError(f"{subject.artifact.path}: its context has no room for a token")
    session.prefill(tokens[:count])
    for token in tokens[count:]:
        session.decode(token)
