"""How far a runtime is from the oracle on a subject's own tokens, and how far it may be.

The tolerance is calibrated. Where the executor carries more precision than the artifact (`widen`,
`double`), 1e-5 of the largest logit is allowed. Where a runtime computes in the artifact's own
precision, it may be off by twice what eager PyTorch in that precision is off on the same tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from harness.errors import HarnessError
from harness.generate.session import Session
from harness.runtimes import runtime_row
from harness.subject import Subject

DECODE_STEPS = 32
WIDE_TOLERANCE = 1e-5  # of the largest logit
CALIBRATED_MULTIPLE = 2.0
PARTS = ("prefill", "decode", "caches")
SEED = 20_26


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


@dataclass(frozen=True)
class Trace:
    """What a session gave for a sequence: logits [rows, vocab] of `positions`, and the caches."""

    positions: list[int]
    n_prefill: int
    logits: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@dataclass(frozen=True)
class Errors:
    """A trace's distance from the oracle, by part."""

    prefill: Error
    decode: Error
    caches: Error


@dataclass(frozen=True)
class Measured:
    """A runtime's trace of the subject's sequence, its errors, and the oracle's logits."""

    errors: Errors
    trace: Trace
    wanted: torch.Tensor


def prompt_length(subject: Subject) -> int:
    """Return two and a half chunks, so that the last is padded; fewer in a short context."""
    layout = subject.session("mil:widen").layout
    decoded = min(DECODE_STEPS, layout.context // 2)
    return max(1, min(5 * layout.prefill.input_len // 2, layout.context - decoded))


def sequence(subject: Subject) -> list[int]:
    """Return seeded tokens: a prompt, and `DECODE_STEPS` to be decoded one by one."""
    layout = subject.session("mil:widen").layout
    length = min(prompt_length(subject) + DECODE_STEPS, layout.context)
    generator = torch.Generator().manual_seed(SEED)
    tokens: list[int] = torch.randint(layout.vocab_size, (length,), generator=generator).tolist()
    return tokens


def trace(session: Session, tokens: list[int], n_prompt: int) -> Trace:
    """Feed a prompt in chunks and the rest token by token, whatever the logits say."""
    layout = session.layout
    if layout.full_logits:
        logits = [session.prefill_all(tokens[:n_prompt])]
        positions = list(range(n_prompt))
    else:
        logits, positions = [session.prefill(tokens[:n_prompt])[None]], [n_prompt - 1]
    n_prefill = len(positions)
    for position in range(n_prompt, len(tokens)):
        logits.append(session.decode(tokens[position])[None])
        positions.append(position)
    layers = range(layout.n_layers)
    return Trace(
        positions,
        n_prefill,
        torch.cat(logits),
        [session.keys(layer) for layer in layers],
        [session.values(layer) for layer in layers],
    )


def measure(subject: Subject, runtime: str) -> Measured:
    """Run the subject's sequence on a runtime, once: the result is kept with the subject."""
    if runtime not in subject.measured:
        subject.measured[runtime] = _measure(subject, runtime)
    measured = subject.measured[runtime]
    assert isinstance(measured, Measured)
    return measured


def _measure(subject: Subject, runtime: str) -> Measured:
    tokens = sequence(subject)
    have = trace(subject.session(runtime), tokens, prompt_length(subject))
    logits, keys, values = subject.reference(torch.tensor(tokens))
    wanted = logits[have.positions]
    pairs = [*zip(have.keys, keys, strict=True), *zip(have.values, values, strict=True)]
    split = have.n_prefill
    errors = Errors(
        error(have.logits[:split], wanted[:split]),
        error(have.logits[split:], wanted[split:]),
        max((error(h, w[:, : h.shape[1]]) for h, w in pairs), key=lambda e: e.relative),
    )
    return Measured(errors, have, wanted)


def tolerances(subject: Subject, runtime: str) -> dict[str, float]:
    """Return the allowed relative error of each part on a runtime."""
    if not runtime_row(runtime).rounds:
        return dict.fromkeys(PARTS, WIDE_TOLERANCE)
    eager = measure(subject, f"eager:{subject.dtype}").errors
    return {
        part: max(_calibrated(getattr(eager, part).relative, subject), WIDE_TOLERANCE)
        for part in PARTS
    }


def _calibrated(relative: float, subject: Subject) -> float:
    """Return the allowed relative error, given that of eager PyTorch in the artifact's dtype."""
    if not math.isfinite(relative):
        raise HarnessError(
            f"eager PyTorch in {subject.dtype} gives NaN or infinity where the reference is "
            f"finite: the model overflows {subject.dtype}, and no tolerance can be measured"
        )
    return CALIBRATED_MULTIPLE * relative


def allowed_on(subject: Subject, runtime: str, tokens: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the allowed relative error on tokens other than the subject's sequence.

    Late positions of a long context may err more than the sequence's. One eager pass in the
    artifact's precision says by how much, of the largest logit of the position.
    """
    if not runtime_row(runtime).rounds:
        return 0.0
    eager = subject.eager(tokens, subject.first_tables(len(tokens)))[0]
    worst = max(error(found, want).relative for found, want in zip(eager, wanted, strict=True))
    return _calibrated(worst, subject)
