"""Prefill and decode against the oracle: logits and caches, teacher forced and greedy.

The tolerance is calibrated. Where the executor carries more precision than the artifact (`widen`,
`double`), 1e-5 of the largest logit is allowed. Where a runtime computes in the artifact's own
precision, it may be off by twice what eager PyTorch in that precision is off on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from harness.checks.metrics import Error, error, kl_divergence, top_agreement
from harness.errors import HarnessError
from harness.generate import generate
from harness.generate.session import Session
from harness.results import Figure, Finding
from harness.subject import Subject
from harness.subject.reference import reference, tables

DECODE_STEPS = 32
WIDE_TOLERANCE = 1e-5  # of the largest logit
CALIBRATED_MULTIPLE = 2.0
_WIDE = ("mil:widen", "mil:double", "eager:fp32", "eager:fp64")
_SEED = 20_26


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


def prompt_length(subject: Subject) -> int:
    """Return two and a half chunks, so that the last is padded; fewer in a short context."""
    layout = subject.session("mil:widen").layout
    decoded = min(DECODE_STEPS, layout.context // 2)
    return max(1, min(5 * layout.prefill.input_len // 2, layout.context - decoded))


def sequence(subject: Subject) -> list[int]:
    """Return seeded tokens: a prompt, and `DECODE_STEPS` to be decoded one by one."""
    layout = subject.session("mil:widen").layout
    length = min(prompt_length(subject) + DECODE_STEPS, layout.context)
    generator = torch.Generator().manual_seed(_SEED)
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


def measure(subject: Subject, runtime: str) -> tuple[Errors, Trace, torch.Tensor]:
    """Run the subject's sequence; return the errors, the trace, and the oracle's logits.

    A runtime computes the sequence once; what it gave is kept with the subject.
    """
    if runtime not in subject.measured:
        subject.measured[runtime] = _measure(subject, runtime)
    result: tuple[Errors, Trace, torch.Tensor] = subject.measured[runtime]
    return result


def _measure(subject: Subject, runtime: str) -> tuple[Errors, Trace, torch.Tensor]:
    tokens = sequence(subject)
    have = trace(subject.session(runtime), tokens, prompt_length(subject))
    logits, keys, values = reference(subject, torch.tensor(tokens))
    wanted = logits[have.positions]
    pairs = [*zip(have.keys, keys, strict=True), *zip(have.values, values, strict=True)]
    split = have.n_prefill
    errors = Errors(
        error(have.logits[:split], wanted[:split]),
        error(have.logits[split:], wanted[split:]),
        max((error(h, w[:, : h.shape[1]]) for h, w in pairs), key=lambda e: e.relative),
    )
    return errors, have, wanted


def tolerances(subject: Subject, runtime: str) -> dict[str, float]:
    """Return the allowed relative error of each part on a runtime."""
    if runtime in _WIDE:
        return dict.fromkeys(("prefill", "decode", "caches"), WIDE_TOLERANCE)
    eager, _, _ = measure(subject, f"eager:{subject.dtype}")
    return {
        part: max(_calibrated(getattr(eager, part).relative, subject), WIDE_TOLERANCE)
        for part in ("prefill", "decode", "caches")
    }


def _calibrated(relative: float, subject: Subject) -> float:
    """What is allowed, by the relative error of eager PyTorch in the artifact's precision."""
    if not math.isfinite(relative):
        raise HarnessError(
            f"eager PyTorch in {subject.dtype} gives NaN or infinity where the reference is "
            f"finite: the model overflows {subject.dtype}, and no tolerance can be measured"
        )
    return CALIBRATED_MULTIPLE * relative


def check_parity(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Teacher forced: prefill in chunks and decode step by step, logits and caches."""
    errors, have, wanted = measure(subject, runtime)
    allowed = tolerances(subject, runtime)
    for part in ("prefill", "decode", "caches"):
        found: Error = getattr(errors, part)
        figures = {
            f"{part} error": Figure(found.relative, "", bound=allowed[part]),
            f"{part} error in deviations": Figure(found.largest / (found.deviation or 1.0)),
            f"{part} SQNR": Figure(found.sqnr, "dB", better="higher"),
        }
        yield Finding("parity", part, comparisons=found.count, figures=figures)
    bound = allowed["decode"] * errors.decode.scale
    agreement = top_agreement(have.logits.argmax(-1), wanted, bound)
    yield Finding(
        "parity",
        "top token",
        ok=agreement.agreed == agreement.decided,
        message=f"{agreement.decided - agreement.agreed} of {agreement.decided} top tokens differ "
        "where the oracle's margin exceeds the error bound",
        comparisons=agreement.decided,
        figures={"KL divergence": Figure(kl_divergence(have.logits, wanted), "nats")},
    )


def check_greedy(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Let the artifact choose: its tokens are the oracle's wherever the oracle is sure."""
    tokens = sequence(subject)[: prompt_length(subject)]
    yield from greedy_findings(subject, runtime, {"seeded prompt": tokens}, DECODE_STEPS)


def greedy_findings(
    subject: Subject, runtime: str, prompts: dict[str, list[int]], new_tokens: int
) -> Iterator[Finding]:
    """Generate after each prompt; one oracle pass over the whole text judges every choice."""
    allowed = max(tolerances(subject, runtime).values())
    for name, prompt in prompts.items():
        chosen = [t.token for t in generate(subject.session(runtime), prompt, new_tokens)]
        text = torch.tensor(prompt + chosen[:-1])
        logits, _, _ = reference(subject, text)
        wanted = logits[len(prompt) - 1 :]
        bound = allowed * float(wanted.abs().max())
        agreement = top_agreement(torch.tensor(chosen), wanted, bound)
        yield Finding(
            "greedy",
            name,
            ok=agreement.agreed == agreement.decided,
            message=f"{agreement.decided - agreement.agreed} of {agreement.decided} tokens are not "
            "the oracle's although its margin exceeds the error bound",
            comparisons=agreement.decided,
            facts={"tokens": agreement.rows, "decided": agreement.decided},
        )


def _allowed_on(
    subject: Subject, runtime: str, tokens: torch.Tensor, wanted: torch.Tensor
) -> float:
    """What is allowed on other tokens than the subject's sequence, at any of their positions.

    Late positions of a long context may err more than the sequence's. One eager pass in the
    artifact's precision says by how much, of the largest logit of the position.
    """
    if runtime in _WIDE:
        return 0.0
    eager = subject.eager(tokens, tables(subject, len(tokens)))[0]
    worst = max(error(found, want).relative for found, want in zip(eager, wanted, strict=True))
    return _calibrated(worst, subject)


def check_residues(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Prompts of every length up to two chunks, and the context filled to its last position."""
    session = subject.session(runtime)
    layout = session.layout
    generator = torch.Generator().manual_seed(_SEED + 1)
    tokens = torch.randint(layout.vocab_size, (layout.context,), generator=generator)
    logits, _, _ = reference(subject, tokens)
    text: list[int] = tokens.tolist()
    allowed = max(
        *tolerances(subject, runtime).values(), _allowed_on(subject, runtime, tokens, logits)
    )
    lengths = range(1, min(2 * layout.prefill.input_len, layout.context) + 1)
    have = []
    for length in lengths:
        session.reset()
        have.append(session.prefill(text[:length]))
    found = error(torch.stack(have), logits[: len(have)])
    yield Finding(
        "residues",
        f"prompts of 1 to {len(have)} tokens",
        comparisons=found.count,
        figures={"prompt lengths error": Figure(found.relative, "", bound=allowed)},
    )
    last = have[-1]
    while session.room:
        last = session.decode(text[session.position])
    found = error(last, logits[-1])
    yield Finding(
        "residues",
        f"the last position, {layout.context - 1}",
        comparisons=found.count,
        figures={"last position error": Figure(found.relative, "", bound=allowed)},
    )
