"""Measures the error of a runtime against the oracle on a subject's tokens, and its tolerance.

The tolerance is calibrated. If the executor computes with more precision than the artifact has
(`widen`, `double`), it is 1e-5 of the largest logit. If a runtime computes in the artifact's own
precision, it is twice the error of eager PyTorch in that precision on the same tokens, at least one
step of that precision, up to a ceiling. The eager model reads the whole sequence at once, without
the artifact's program, caches or indices: a fault of the artifact raises its error and leaves its
tolerance as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.errors import NoReferenceError
from harness.generate.session import Session
from harness.models.stream import Passage
from harness.results import Figure
from harness.runtimes import REFERENCE, runtime_row
from harness.subject import Subject

DECODE_STEPS = 32
WIDE_TOLERANCE = 1e-5  # of the largest logit
CALIBRATED_MULTIPLE = 2.0
CEILINGS = {"fp16": 0.125, "fp32": 1e-3}
"""The largest tolerance of a runtime that rounds, by the artifact's dtype, as a share of the
largest logit: 256 roundings of fp16, 2**-11 each. Sound models of 12 layers get 5 % of it."""
STEPS = {"fp16": 2.0**-10, "fp32": 2.0**-23}
"""The least tolerance of a runtime that rounds: the distance of two numbers of the artifact's dtype
beside the largest logit. Eager PyTorch is off by less in a model whose layers add nothing."""
PARTS = ("prefill", "decode", "caches")
SEED = 20_26
_BEST_SQNR = 400.0  # dB; above the resolution of fp64, and finite when nothing differs
_PIECE = 1 << 20  # values that are compared at a time: logits of a large vocabulary are many
_ROUNDING = 1e-6  # dB; an error of exactly its bound meets it in each unit
# 16 roundings of fp32. Between CPUs, whose kernels sum in other orders, errors move by up to 8.
WIDE_NOISE = 16 * 2.0**-23


@dataclass(frozen=True)
class Error:
    """The distance of a tensor from the expected one.

    `largest` is the largest absolute error, `scale` the largest expected magnitude, `deviation` the
    expected values' standard deviation, `rms` the root of their mean square; `sqnr` is in dB. A NaN
    or an infinity makes `largest` infinite.
    """

    largest: float
    scale: float
    deviation: float
    rms: float
    sqnr: float
    count: int

    @property
    def relative(self) -> float:
        """The largest error over the largest expected magnitude."""
        return self.largest / self.scale if self.scale else self.largest

    def figures(self, name: str, bound: float) -> dict[str, Figure]:
        """Return the figures of an error that may be `bound` of the largest expected magnitude.

        The same bound, and the noise, are told in each figure's unit. That of the SQNR is reached
        when every value has the largest error that is allowed; noise has a mean square of an eighth
        of its largest error, which is four to eight standard deviations.
        """
        noise = noise_floor(bound)
        unit = self.scale / self.deviation if self.scale and self.deviation else 1.0
        decibels = self._sqnr_at(bound), self._sqnr_at(noise / 8)
        return {
            f"{name} error": Figure(self.relative, "", bound, floor=noise),
            f"{name} error in deviations": Figure(
                self.relative * unit, "", bound * unit, floor=noise * unit
            ),
            f"{name} SQNR": Figure(self.sqnr, "dB", decibels[0], "higher", floor=decibels[1]),
        }

    def _sqnr_at(self, relative: float) -> float | None:
        """Return the SQNR in dB if each value has this error, relative to the largest magnitude."""
        if not self.rms or not relative:
            return None
        return min(20 * math.log10(self.rms / (relative * self.scale)) - _ROUNDING, _BEST_SQNR)


def error(actual: torch.Tensor, expected: torch.Tensor) -> Error:
    """Measure `actual` against `expected`, in fp64; the shapes must be equal."""
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {list(actual.shape)} and {list(expected.shape)} differ")
    pieces = zip(actual.flatten().split(_PIECE), expected.flatten().split(_PIECE), strict=True)
    sums = torch.stack([_sums(have.double(), want.double()) for have, want in pieces])
    (largest, scale), (power, lost) = sums[:, :2].amax(0).tolist(), sums[:, 2:].sum(0).tolist()
    ratio = power / lost if lost else math.inf
    sqnr = 10 * math.log10(ratio) if ratio else -_BEST_SQNR
    finite = bool(torch.isfinite(actual).all())
    return Error(
        largest=largest if finite else float("inf"),
        scale=scale,
        rms=math.sqrt(power / expected.numel()),
        deviation=float(expected.double().std()) if expected.numel() > 1 else 0.0,
        sqnr=min(sqnr, _BEST_SQNR) if finite else float("-inf"),
        count=expected.numel(),
    )


def _sums(have: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Return the largest error and the largest expected magnitude, and the sums of squares."""
    off = have - want
    return torch.stack((off.abs().max(), want.abs().max(), want.square().sum(), off.square().sum()))


def noise_floor(bound: float) -> float:
    """Return the noise of a relative error whose bound this is.

    A calibrated bound is a multiple of what the precision costs: two runs that sum in other orders
    may differ by that.
    """
    return WIDE_NOISE if bound <= WIDE_TOLERANCE else bound / CALIBRATED_MULTIPLE


def kl_bound(largest: float) -> float:
    """Return the largest KL divergence, in nats, of logits that are off by at most `largest`.

    By Hoeffding's lemma it is half of the square. fp64 itself adds 1e-12.
    """
    return largest**2 / 2 + 1e-12


def kl_divergence(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the mean KL divergence, in nats, of the rows' distributions [rows, vocab]."""
    want = torch.log_softmax(expected.double(), -1)
    have = torch.log_softmax(actual.double(), -1)
    return float((want.exp() * (want - have)).sum(-1).mean())


@dataclass(frozen=True)
class Agreement:
    """How many rows the oracle decides, by a margin above the error, and how many of them agree."""

    agreed: int
    decided: int
    rows: int


def top_agreement(chosen: torch.Tensor, expected: torch.Tensor, bound: float) -> Agreement:
    """Compare chosen tokens [rows] with the oracle's logits [rows, vocab].

    Two logits that may each be off by `bound` can change their order when they are less than
    `2 * bound` apart: the oracle does not decide such a row.
    """
    best = expected.double().topk(2, -1)
    decided = best.values[:, 0] - best.values[:, 1] > 2 * bound
    agrees = chosen == best.indices[:, 0]
    return Agreement(int((agrees & decided).sum()), int(decided.sum()), len(chosen))


@dataclass(frozen=True)
class Trace:
    """A session's results for a sequence: logits [rows, vocab] of `positions`, and the caches."""

    positions: list[int]
    n_prefill: int
    logits: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@dataclass(frozen=True)
class Errors:
    """The distance of a trace from the oracle, by part."""

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
    """Return the length of two and a half chunks, or less in a short context.

    The last chunk is therefore padded.
    """
    layout = subject.session(REFERENCE).layout
    decoded = min(DECODE_STEPS, layout.context // 2)
    return max(1, min(5 * layout.prefill.input_len // 2, layout.context - decoded))


def sequence(subject: Subject) -> list[int]:
    """Return seeded tokens: a prompt, then `DECODE_STEPS` that are decoded one by one."""
    layout = subject.session(REFERENCE).layout
    length = min(prompt_length(subject) + DECODE_STEPS, layout.context)
    generator = torch.Generator().manual_seed(SEED)
    tokens: list[int] = torch.randint(layout.vocab_size, (length,), generator=generator).tolist()
    return tokens


def trace(session: Session, tokens: list[int], n_prompt: int) -> Trace:
    """Feed a prompt in chunks and the rest token by token, regardless of the logits."""
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
    """Run the subject's sequence on a runtime once; the result is kept with the subject."""
    if runtime not in subject.measured:
        subject.measured[runtime] = _measure(subject, runtime)
    measured = subject.measured[runtime]
    assert isinstance(measured, Measured)
    return measured


def _measure(subject: Subject, runtime: str) -> Measured:
    tokens, n_prompt = sequence(subject), prompt_length(subject)
    have = trace(subject.session(runtime), tokens, n_prompt)
    found = subject.computed(sequence_passage(subject, runtime))
    logits = found.logits(have.positions)
    wanted = Trace(have.positions, have.n_prefill, logits, found.keys, found.values)
    return Measured(_errors(have, wanted), have, wanted.logits)


def sequence_passage(subject: Subject, runtime: str) -> Passage:
    """Return the subject's sequence, and what a comparison with a runtime needs of its results."""
    tokens = sequence(subject)
    first = _first_row(subject)
    cost = runtime_row(runtime).rounds
    return Passage(tuple(tokens), frozenset(range(first, len(tokens))), caches=True, cost=cost)


def _first_row(subject: Subject) -> int:
    """Return the first position of the sequence whose logits prefill returns."""
    return 0 if subject.session(REFERENCE).layout.full_logits else prompt_length(subject) - 1


def _errors(have: Trace, wanted: Trace) -> Errors:
    """Measure a trace against one of the same rows, whose caches may hold more positions."""
    split = wanted.n_prefill
    return Errors(
        error(have.logits[:split], wanted.logits[:split]),
        error(have.logits[split:], wanted.logits[split:]),
        caches_error((*have.keys, *have.values), (*wanted.keys, *wanted.values)),
    )


def distances(have: Trace, wanted: Trace) -> dict[str, Error]:
    """Measure logits and caches of a trace against one that has every row."""
    return {
        "logits": error(have.logits, wanted.logits[have.positions]),
        "caches": caches_error((*have.keys, *have.values), (*wanted.keys, *wanted.values)),
    }


def caches_error(have: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> Error:
    """Measure all caches as one tensor, each relative to its own largest expected magnitude.

    The longest caches [heads, positions, head_dim] hold the first positions of the expected ones;
    a shorter one, of a sliding window, holds the newest of these.
    """
    end = max((cache.shape[1] for cache in have), default=0)
    found, expected = [], []
    for cache, full in zip(have, wanted, strict=True):
        is_whole = full.shape[1] == cache.shape[1]
        want = (full if is_whole else full[:, end - cache.shape[1] : end]).double()
        scale = want.abs().max() or 1.0
        found.append(cache.double().flatten() / scale)
        expected.append(want.flatten() / scale)
    return error(torch.cat(found), torch.cat(expected))


def tolerances(subject: Subject, runtime: str) -> dict[str, float]:
    """Return the allowed relative error of each part on a runtime.

    Raises NoReferenceError when the model overflows its own precision.
    """
    if not runtime_row(runtime).rounds:
        return dict.fromkeys(PARTS, WIDE_TOLERANCE)
    cost = subject.measured.get("precision") or _cost_of_precision(subject, runtime)
    assert isinstance(cost, dict)
    subject.measured["precision"] = cost
    return {part: max(_calibrated(cost[part], subject), WIDE_TOLERANCE) for part in PARTS}


def _cost_of_precision(subject: Subject, runtime: str) -> dict[str, float]:
    """Return the relative error of each part of eager PyTorch, in the artifact's dtype."""
    found = subject.computed(sequence_passage(subject, runtime))
    assert found.cost
    split = prompt_length(subject)
    rows = {"prefill": slice(_first_row(subject), split), "decode": slice(split, None)}
    relative = {
        part: _ratio(found.cost.logits[span].max(), found.largest[span].max())
        for part, span in rows.items()
    }
    return relative | {"caches": found.cost.caches}


def _ratio(largest: torch.Tensor, scale: torch.Tensor) -> float:
    return float(largest / scale if scale else largest)


def _calibrated(relative: float, subject: Subject) -> float:
    """Return the relative error to allow for this one of eager PyTorch in the artifact's dtype."""
    if not math.isfinite(relative):
        raise NoReferenceError(
            f"eager PyTorch in {subject.dtype} gives NaN or infinity where the reference is "
            f"finite: the model overflows {subject.dtype}, and no tolerance can be measured"
        )
    allowed = max(CALIBRATED_MULTIPLE * relative, STEPS[subject.dtype])
    return min(allowed, CEILINGS[subject.dtype])


def allowed_on(subject: Subject, passage: Passage) -> float:
    """Return the allowed relative error on other tokens than the subject's sequence.

    Late positions of a long context may have a larger error than the sequence. The cost of the
    artifact's precision is measured on the passage, relative to each position's largest logit. A
    passage without a cost allows none.
    """
    if not passage.cost:
        return 0.0
    found = subject.computed(passage)
    assert found.cost
    pairs = zip(found.cost.logits, found.largest, strict=True)
    return _calibrated(max(_ratio(*pair) for pair in pairs), subject)
