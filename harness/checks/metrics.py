"""How far logits or caches are from the oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Error:
    """The distance of a tensor from what it should be.

    `largest` is the largest absolute error, `scale` the largest expected magnitude,
    `deviation` the expected values' standard deviation, `sqnr` in dB. NaN or an infinity
    anywhere makes `largest` infinite.
    """

    largest: float
    scale: float
    deviation: float
    sqnr: float
    count: int

    @property
    def relative(self) -> float:
        """The largest error over the largest expected magnitude."""
        return self.largest / self.scale if self.scale else self.largest


_BEST_SQNR = 400.0  # dB; beyond what fp64 resolves, and finite where nothing differs


def error(actual: torch.Tensor, expected: torch.Tensor) -> Error:
    """Measure `actual` against `expected`, in fp64; the shapes must be equal."""
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {list(actual.shape)} and {list(expected.shape)} differ")
    have, want = actual.double(), expected.double()
    noise = have - want
    largest = float(noise.abs().max())
    power, lost = float(want.square().sum()), float(noise.square().sum())
    ratio = power / lost if lost else float("inf")
    sqnr = 10 * torch.tensor(ratio, dtype=torch.float64).log10().item() if ratio else -_BEST_SQNR
    finite = bool(torch.isfinite(have).all())
    return Error(
        largest=largest if finite else float("inf"),
        scale=float(want.abs().max()),
        deviation=float(want.std()) if want.numel() > 1 else 0.0,
        sqnr=min(sqnr, _BEST_SQNR) if finite else float("-inf"),
        count=want.numel(),
    )


def kl_divergence(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the mean KL divergence, in nats, of the rows' distributions [rows, vocab]."""
    want = torch.log_softmax(expected.double(), -1)
    have = torch.log_softmax(actual.double(), -1)
    return float((want.exp() * (want - have)).sum(-1).mean())


@dataclass(frozen=True)
class Agreement:
    """Of `decided` rows, those whose oracle margin exceeds the error, `agreed` agree."""

    agreed: int
    decided: int
    rows: int


def top_agreement(chosen: torch.Tensor, expected: torch.Tensor, bound: float) -> Agreement:
    """Compare chosen tokens [rows] with the oracle's logits [rows, vocab].

    Two logits that may each be off by `bound` can change places when they are less than
    `2 * bound` apart: such a row decides nothing.
    """
    best = expected.double().topk(2, -1)
    decided = best.values[:, 0] - best.values[:, 1] > 2 * bound
    agrees = chosen == best.indices[:, 0]
    return Agreement(int((agrees & decided).sum()), int(decided.sum()), len(chosen))
