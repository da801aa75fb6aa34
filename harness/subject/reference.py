"""What the oracle says of a text; without sense where the model itself gives NaN or infinity."""

from __future__ import annotations

import torch

from harness.errors import HarnessError
from harness.subject.subject import Subject

_MAX_NAMED = 4


def reference(
    subject: Subject, tokens: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """The oracle's logits [tokens, vocab], keys and values.

    Raises HarnessError when they are not finite: nothing can be compared with them.
    """
    logits, keys, values = subject.oracle(tokens, tables(subject, len(tokens)))
    if not logits.isfinite().all():
        raise HarnessError(
            "the reference itself, PyTorch in fp64, gives NaN or infinity, so there is nothing to "
            f"compare with: {_cause(subject)}"
        )
    return logits, keys, values


def tables(subject: Subject, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the artifact's cosines and sines of the first positions, [length, head_dim / 2]."""
    cos, sin = subject.tables
    return cos[:length], sin[:length]


def _cause(subject: Subject) -> str:
    of = "artifact" if subject.expected_weights is None else "checkpoint"
    bad = [name for name, weight in subject.weights.items() if not weight.isfinite().all()]
    if not bad:
        return f"the {of}'s weights are finite, but the model overflows"
    more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
    return f"the {of}'s weights hold NaN or infinity, in {', '.join(bad[:_MAX_NAMED])}{more}"
