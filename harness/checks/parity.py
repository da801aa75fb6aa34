"""Compares prefill and decode with the oracle: logits and caches, teacher forced and greedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from harness.checks.accuracy import (
    CEILINGS,
    DECODE_STEPS,
    PARTS,
    SEED,
    STEPS,
    WIDE_TOLERANCE,
    Error,
    Measured,
    Trace,
    allowed_on,
    distances,
    error,
    kl_bound,
    kl_divergence,
    measure,
    noise_floor,
    prompt_length,
    sequence,
    sequence_passage,
    tolerances,
    top_agreement,
    trace,
)
from harness.checks.run import Check, check
from harness.errors import CallTimeoutError, CrashError, HarnessError
from harness.generate import generate
from harness.generate.layout import ModelLayout
from harness.generate.session import Session
from harness.generate.tokenizer import load_tokenizer
from harness.mil import repeated
from harness.models.stream import Passage
from harness.results import Figure, Finding, Histogram
from harness.results.figures import LARGEST, SMALLEST
from harness.runtimes import REFERENCE, runtime_row
from harness.subject import Subject, language_model

GREEDY_PROMPTS = "greedy-prompts"
_NEW_TOKENS = 32  # after each prompt
# Times the change by one rounding of each weight: what a precision may make of a passage. Sound
# exports of SmolLM2 reach 2.7 in fp32 and 4.3 in fp16, whose roundings are those of each operation.
_ROUNDINGS = 8.0
_MAX_CONDITIONED = 10 * WIDE_TOLERANCE
_WRONG = {"fp16": 0.5, "fp32": 1e-2}  # errors that no rounding explains
LIMITS = (0, 127, 128, 255, 256, 32767, 32768, 65535, 65536)  # of ids in 8, 16 and 17 bits


def _sequence(subject: Subject, runtime: str) -> list[Passage]:
    return [sequence_passage(subject, runtime)]


@check("parity", needs=(language_model,), takes_runtime=True, damaged="N01", passages=_sequence)
def check_parity(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare logits and caches, teacher forced: prefill in chunks, then decode step by step."""
    measured = measure(subject, runtime)
    allowed = tolerances(subject, runtime)
    have, wanted, split = measured.trace.logits, measured.wanted, measured.trace.n_prefill
    rows = {"prefill": slice(split), "decode": slice(split, None)}
    for part in PARTS:
        found: Error = getattr(measured.errors, part)
        figures = found.figures(part, allowed[part])
        sizes = {}
        if span := rows.get(part):
            most = allowed[part] * (found.scale or 1.0)
            sizes[f"{part} logits"] = error_histogram(have[span], wanted[span], most)
        yield Finding("parity", part, True, "", found.count, figures, code="N10", histograms=sizes)
    bound = allowed["decode"] * measured.errors.decode.scale
    agreement = top_agreement(have.argmax(-1), wanted, bound)
    yield Finding(
        "parity",
        "top token",
        ok=agreement.agreed == agreement.decided,
        message=f"{agreement.decided - agreement.agreed} of {agreement.decided} top tokens differ "
        "where the oracle's margin exceeds the error bound",
        comparisons=agreement.decided,
        figures={"KL divergence": _divergence(measured, allowed)},
        code="N11",
    )


def error_histogram(actual: torch.Tensor, expected: torch.Tensor, allowed: float) -> Histogram:
    """Return how many errors there are of each size, in units of the largest that is allowed."""
    error = (actual.double() - expected.double()).abs().flatten() / allowed
    finite = error[torch.isfinite(error)]
    powers = (torch.frexp(finite[finite > 0]).exponent - 1).clamp(SMALLEST, LARGEST)
    first = int(powers.min()) if len(powers) else 0
    counts = tuple(torch.bincount(powers - first).tolist())
    return Histogram(first, counts, int((finite == 0).sum()), len(error) - len(finite))


def _divergence(measured: Measured, allowed: dict[str, float]) -> Figure:
    """Return the KL divergence of all rows, which the allowed error of the logits bounds."""
    off = {part: allowed[part] * getattr(measured.errors, part).scale for part in PARTS[:2]}
    part = max(off, key=lambda part: off[part])
    bound = kl_bound(off[part])
    found = kl_divergence(measured.trace.logits, measured.wanted)
    return Figure(found, "nats", bound, floor=bound * noise_floor(allowed[part]) / allowed[part])


@check("greedy", needs=(language_model,), takes_runtime=True, damaged="N01")
def check_greedy(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Check that the artifact chooses the oracle's tokens wherever the oracle decides."""
    tokens = sequence(subject)[: prompt_length(subject)]
    yield from greedy_findings(subject, runtime, {"seeded prompt": tokens}, DECODE_STEPS)


def greedy_findings(
    subject: Subject, runtime: str, prompts: dict[str, list[int]], new_tokens: int
) -> Iterator[Finding]:
    """Generate after each prompt; one oracle pass over the whole text judges every token."""
    allowed = max(tolerances(subject, runtime).values())
    for name, prompt in prompts.items():
        chosen = [t.token for t in generate(subject.session(runtime), prompt, new_tokens)]
        text = (*prompt, *chosen[:-1])
        rows = range(len(prompt) - 1, len(text))
        wanted = subject.computed(Passage(text, frozenset(rows))).logits(rows)
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
            code="N12",
        )


def greedy_prompts(prompts: Sequence[str], tokenizer: Path) -> Check[Subject]:
    """Return a check of the greedy tokens after prompts; raise HarnessError for a bad tokenizer."""
    loaded = load_tokenizer(tokenizer)
    encode = loaded.encode_chat if loaded.chat_template else loaded.encode
    tokens = {prompt: encode(prompt) for prompt in prompts}
    find = partial(greedy_findings, prompts=tokens, new_tokens=_NEW_TOKENS)
    return Check(GREEDY_PROMPTS, find, (language_model,), takes_runtime=True, damaged="N01")


def _whole_context(subject: Subject, runtime: str) -> list[Passage]:
    """Return seeded tokens that fill the context, with the rows that `residues` compares."""
    layout = subject.session(REFERENCE).layout
    generator = torch.Generator().manual_seed(SEED + 1)
    tokens = torch.randint(layout.vocab_size, (layout.context,), generator=generator)
    rows = frozenset((*range(_max_length(layout)), layout.context - 1))
    return [Passage(tuple(tokens.tolist()), rows, cost=runtime_row(runtime).rounds)]


def _max_length(layout: ModelLayout) -> int:
    """Return the length of the longest of the prompts that are each fed."""
    return min(2 * layout.prefill.input_len, layout.context)


@check(
    "residues", needs=(language_model,), takes_runtime=True, damaged="N01", passages=_whole_context
)
def check_residues(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare prompts of every length up to two chunks and of the whole context, and its last step.

    Decode feeds what the first prompts do not reach, the last 32 positions at least.
    The mask hides a chunk's later tokens, so that one chunk gives the logits of every length; some
    lengths are fed alone, with padding. A prompt of one token more than the context is refused.
    """
    session = subject.session(runtime)
    layout = session.layout
    (passage,) = _whole_context(subject, runtime)
    computed, text = subject.computed(passage), list(passage.tokens)
    allowed = max(*tolerances(subject, runtime).values(), allowed_on(subject, passage))
    longest, final = _max_length(layout), computed.logits([layout.context - 1])[0]
    have = [*_each_length(session, text[:longest])]
    lengths = [*range(1, longest + 1), *_padded_lengths(layout)]
    have += [_fed_alone(session, text[:length]) for length in lengths[longest:]]
    found = error(torch.stack(have), computed.logits(length - 1 for length in lengths))
    yield Finding(
        "residues",
        f"prompts of 1 to {longest} tokens",
        comparisons=found.count,
        figures={"prompt lengths error": _bounded(found, allowed)},
        code="N14",
    )
    session.reset()
    found = error(session.prefill(text), final)
    whole = Finding(
        "residues",
        f"a prompt of the whole context, {layout.context} tokens",
        comparisons=found.count,
        figures={"whole context error": _bounded(found, allowed)},
        code="N14",
    )
    last = have[longest - 1]
    session.rewind(max(1, min(longest, layout.context - DECODE_STEPS)))
    for token in text[session.position :]:
        last = session.decode(token)
    found = error(last, final)
    yield Finding(
        "residues",
        f"the last position, {layout.context - 1}",
        comparisons=found.count,
        figures={"last position error": _bounded(found, allowed)},
        code="N14",
    )
    yield whole
    session.reset()
    yield Finding(
        "residues",
        f"a prompt of {layout.context + 1} tokens",
        ok=_refuses(session, [*text, 0]),
        message="it is longer than the context, but it is not refused",
        comparisons=1,
        code="N15",
    )


def _each_length(session: Session, text: list[int]) -> Iterator[torch.Tensor]:
    """Yield the logits [vocab] after each token of a text, which is fed in whole chunks."""
    session.reset()
    while session.position < len(text):
        size = session.layout.prefill.input_len - len(session.tail)
        with repeated():
            yield from session.feed_each(text[session.position : session.position + size])


def _padded_lengths(layout: ModelLayout) -> list[int]:
    """Return lengths of prompts whose first or second chunk has much, some or little padding."""
    size = layout.prefill.input_len
    lengths = (1, size // 2, size - 1, size + 1, size + size // 2, 2 * size - 1)
    return sorted({length for length in lengths if 0 < length <= _max_length(layout)})


def _fed_alone(session: Session, prompt: list[int]) -> torch.Tensor:
    """Return the logits [vocab] after a prompt, whose last chunk is padded."""
    session.reset()
    return session.prefill(prompt)


def _refuses(session: Session, tokens: list[int]) -> bool:
    """Return whether a session refuses a prompt and feeds nothing of it."""
    try:
        session.prefill(tokens)
    except (CrashError, CallTimeoutError):
        raise
    except HarnessError:
        return session.position == 0
    return False


def _id_passages(subject: Subject, runtime: str) -> list[Passage]:
    cost = runtime_row(runtime).rounds
    return [
        Passage(tuple(ids), frozenset(range(len(ids))), caches=True, cost=cost)
        for ids in _id_sequences(subject).values()
    ]


def _id_sequences(subject: Subject) -> dict[str, list[int]]:
    """Return the sequences of token ids that matter, by name, cut to the context."""
    layout = subject.session(REFERENCE).layout
    vocabulary = layout.vocab_size
    limits = [token for token in LIMITS if token < vocabulary]
    others = torch.randint(1, vocabulary, (2,), generator=torch.Generator().manual_seed(SEED + 2))
    a, b = others.tolist()
    sequences = {
        "limits": list(dict.fromkeys([*limits, vocabulary - 1])),
        "id 0 within": [a, 0, 0, b],
        "id 0 at both ends": [0, a, b, 0],
        "id 0 only": [0, 0, 0, 0],
    }
    return {name: ids[: layout.context] for name, ids in sequences.items()}


@check(
    "token-ids", needs=(language_model,), takes_runtime=True, damaged="N01", passages=_id_passages
)
def check_token_ids(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare ids at the limits of 8, 16 and 17 bits, the last id, and id 0 at every place.

    Core ML takes ids as int32, and programs narrow them to 16 bits. Id 0 also fills the rest of a
    chunk. Each sequence is fed as a prompt, and again token by token.
    """
    session = subject.session(runtime)
    passages = _id_passages(subject, runtime)
    for (name, text), passage in zip(_id_sequences(subject).items(), passages, strict=True):
        computed = subject.computed(passage)
        positions = list(range(len(text)))
        wanted = Trace(positions, 0, computed.logits(positions), computed.keys, computed.values)
        allowed = max(*tolerances(subject, runtime).values(), allowed_on(subject, passage))
        for n_prompt, how in ((len(text), "prompt"), (1, "steps")):
            session.reset()
            found = distances(trace(session, text, n_prompt), wanted)
            for part, off in found.items():
                bound = allowed_where_it_cancels(subject, runtime, passage, part, off, allowed)
                is_judged = bound < math.inf
                yield Finding(
                    "token-ids",
                    f"{name}, {how}",
                    comparisons=off.count if is_judged else 0,
                    figures={f"{name} {how} {part} error": _bounded(off, bound)},
                    facts={} if is_judged else {f"{name} {how} {part} not judged": off.count},
                    code="N16",
                )


def allowed_where_it_cancels(
    subject: Subject, runtime: str, passage: Passage, part: str, off: Error, allowed: float
) -> float:
    """Return the allowed relative error of a part of a passage where a runtime is off.

    Some passages are ill-conditioned: SmolLM2 amplifies roundings thirtyfold after its token 0.
    Where the error is beyond `allowed`, the oracle's own change by an error in the last bit of each
    weight tells how much the runtime's precision costs there. It is infinite where a sound runtime
    may be off by more than one is ever allowed: this passage does not judge it.
    """
    rounds = runtime_row(runtime).rounds
    dtype, found = subject.dtype if rounds else "fp32", off.relative
    if found <= allowed or not found <= _WRONG[dtype]:
        return allowed
    sensitivity = subject.model.sensitivity(passage)[part]
    worst = _ROUNDINGS * sensitivity * STEPS[dtype] / STEPS["fp32"]
    ceiling = CEILINGS[dtype] if rounds else _MAX_CONDITIONED
    if ceiling < worst and found <= worst:
        return math.inf
    return max(allowed, min(worst, ceiling))


def _bounded(found: Error, bound: float) -> Figure:
    if bound == math.inf:
        return Figure(found.relative, "")
    return Figure(found.relative, "", bound, floor=noise_floor(bound))
