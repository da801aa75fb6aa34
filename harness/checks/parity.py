"""Compares prefill and decode with the oracle: logits and caches, teacher forced and greedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from harness.checks.accuracy import (
    DECODE_STEPS,
    PARTS,
    SEED,
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
    tolerances,
    top_agreement,
    trace,
)
from harness.checks.run import Check, check
from harness.errors import CallTimeoutError, CrashError, HarnessError
from harness.generate import generate
from harness.generate.session import Session
from harness.generate.tokenizer import load_tokenizer
from harness.results import Figure, Finding
from harness.subject import Subject, language_model

GREEDY_PROMPTS = "greedy-prompts"
_NEW_TOKENS = 32  # after each prompt
LIMITS = (0, 127, 128, 255, 256, 32767, 32768, 65535, 65536)  # of ids in 8, 16 and 17 bits


@check("parity", needs=(language_model,), takes_runtime=True, damaged="N01")
def check_parity(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare logits and caches, teacher forced: prefill in chunks, then decode step by step."""
    measured = measure(subject, runtime)
    allowed = tolerances(subject, runtime)
    for part in PARTS:
        found: Error = getattr(measured.errors, part)
        figures = found.figures(part, allowed[part])
        yield Finding("parity", part, comparisons=found.count, figures=figures, code="N10")
    have, wanted = measured.trace.logits, measured.wanted
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
        text = torch.tensor(prompt + chosen[:-1])
        logits, _, _ = subject.reference(text)
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
            code="N12",
        )


def greedy_prompts(prompts: Sequence[str], tokenizer: Path) -> Check[Subject]:
    """Return a check of the greedy tokens after prompts; raise HarnessError for a bad tokenizer."""
    loaded = load_tokenizer(tokenizer)
    encode = loaded.encode_chat if loaded.chat_template else loaded.encode
    tokens = {prompt: encode(prompt) for prompt in prompts}
    find = partial(greedy_findings, prompts=tokens, new_tokens=_NEW_TOKENS)
    return Check(GREEDY_PROMPTS, find, (language_model,), takes_runtime=True, damaged="N01")


@check("residues", needs=(language_model,), takes_runtime=True, damaged="N01")
def check_residues(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare prompts of every length up to two chunks and of the whole context, and its last step.

    A prompt with one token more must be refused.
    """
    session = subject.session(runtime)
    layout = session.layout
    generator = torch.Generator().manual_seed(SEED + 1)
    tokens = torch.randint(layout.vocab_size, (layout.context,), generator=generator)
    logits, _, _ = subject.reference(tokens)
    text: list[int] = tokens.tolist()
    allowed = max(
        *tolerances(subject, runtime).values(), allowed_on(subject, runtime, tokens, logits)
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
        figures={"prompt lengths error": _bounded(found, allowed)},
        code="N14",
    )
    last = have[-1]
    while session.position < layout.context:
        last = session.decode(text[session.position])
    found = error(last, logits[-1])
    yield Finding(
        "residues",
        f"the last position, {layout.context - 1}",
        comparisons=found.count,
        figures={"last position error": _bounded(found, allowed)},
        code="N14",
    )
    session.reset()
    found = error(session.prefill(text), logits[-1])
    yield Finding(
        "residues",
        f"a prompt of the whole context, {layout.context} tokens",
        comparisons=found.count,
        figures={"whole context error": _bounded(found, allowed)},
        code="N14",
    )
    session.reset()
    yield Finding(
        "residues",
        f"a prompt of {layout.context + 1} tokens",
        ok=_refuses(session, [*text, 0]),
        message="it is longer than the context, but it is not refused",
        comparisons=1,
        code="N15",
    )


def _refuses(session: Session, tokens: list[int]) -> bool:
    """Return whether a session refuses a prompt and feeds nothing of it."""
    try:
        session.prefill(tokens)
    except (CrashError, CallTimeoutError):
        raise
    except HarnessError:
        return session.position == 0
    return False


@check("token-ids", needs=(language_model,), takes_runtime=True, damaged="N01")
def check_token_ids(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Compare ids at the limits of 8, 16 and 17 bits, the last id, and id 0 at every place.

    Core ML takes ids as int32, and programs narrow them to 16 bits. Id 0 also fills the rest of a
    chunk. Each sequence is fed as a prompt, and again token by token.
    """
    vocabulary = subject.session(runtime).layout.vocab_size
    limits = [token for token in LIMITS if token < vocabulary]
    others = torch.randint(1, vocabulary, (2,), generator=torch.Generator().manual_seed(SEED + 2))
    a, b = others.tolist()
    yield from _fed_both_ways(
        subject,
        runtime,
        {
            "limits": list(dict.fromkeys([*limits, vocabulary - 1])),
            "id 0 within": [a, 0, 0, b],
            "id 0 at both ends": [0, a, b, 0],
            "id 0 only": [0, 0, 0, 0],
        },
    )


def _fed_both_ways(
    subject: Subject, runtime: str, sequences: dict[str, list[int]]
) -> Iterator[Finding]:
    """Compare logits and caches of sequences, as prompts and token by token, with the oracle's."""
    session = subject.session(runtime)
    for name, ids in sequences.items():
        text = ids[: session.layout.context]
        tokens = torch.tensor(text)
        wanted = Trace(list(range(len(text))), 0, *subject.reference(tokens))
        allowed = max(
            *tolerances(subject, runtime).values(),
            allowed_on(subject, runtime, tokens, wanted.logits),
        )
        for n_prompt, how in ((len(text), "prompt"), (1, "steps")):
            session.reset()
            found = distances(trace(session, text, n_prompt), wanted)
            for part, off in found.items():
                yield Finding(
                    "token-ids",
                    f"{name}, {how}",
                    comparisons=off.count,
                    figures={f"{name} {how} {part} error": _bounded(off, allowed)},
                    code="N16",
                )


def _bounded(found: Error, bound: float) -> Figure:
    return Figure(found.relative, "", bound, floor=noise_floor(bound))
