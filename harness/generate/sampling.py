"""Choose the next token from logits: greedily, or by temperature and nucleus (top-p)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness.errors import HarnessError

Sampler = Callable[[torch.Tensor], int]  # logits [vocab], any floating dtype -> token


def greedy(logits: torch.Tensor) -> int:
    """The token of the largest logit, the first of equals; no rounding on the way.

    Raises HarnessError if a logit is NaN or infinite: such a model has no answer.
    """
    _require_finite(logits)
    return int(logits.argmax())


def make_sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """Greedy at temperature 0; else draws from softmax(logits / temperature), cut to `top_p`.

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p`
    (Holtzman et al., 2020); it always holds one. Computed in fp64; the same seed draws the same.
    """
    if temperature == 0:
        return greedy
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


def _require_finite(logits: torch.Tensor) -> None:
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise HarnessError(
            f"{bad} of {logits.numel()} logits are NaN or infinite: the model overflowed, or its "
            "weights are damaged; `harness run --runtime mil:widen` computes without fp16 range"
        )
