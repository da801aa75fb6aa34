"""Checks of generation: what each call is handed, and what comes out, to the last position.

The values of `calls` follow from the definition: a call at position p hands over caches of the
first positions, and the tokens that these do not hold; a token sees itself and all positions before
it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from harness.checks import Check
from harness.checks.accuracy import SEED, caches_error, error, tolerances, top_agreement
from harness.checks.run import check
from harness.errors import HarnessError
from harness.generate import Finish, GeneratedToken, generate, generate_text
from harness.generate.layout import described_methods
from harness.generate.lookahead import Lookahead
from harness.generate.phase import TOKENS_INPUT, ConstantReader, Phase
from harness.generate.session import PhaseName, Session
from harness.generate.tokenizer import load_tokenizer
from harness.results import Figure, Finding
from harness.runtimes import REFERENCE
from harness.runtimes.base import Method
from harness.subject import Subject, language_model
from harness.suites.generation.order import text_of

_SOME = 12  # tokens that are generated where the end does not matter
_TEXT = "Today is Friday."
_LOOKAHEADS = ((2, 1, 0), (2, 2, 1), (2, 4, 4), (3, 1, 2), (3, 2, 1), (4, 1, 1), (5, 1, 1))


class Recorded:
    """A method that keeps a copy of the inputs of its last call."""

    def __init__(self, method: Method) -> None:
        self.name, self.inputs, self.outputs = method.name, method.inputs, method.outputs
        self._method = method
        self.last: tuple[torch.Tensor, ...] = ()

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute once."""
        self.last = tuple(tensor.clone() for tensor in tensors)
        return self._method(*tensors)


def golden_mask(stored: int, length: int, cache_len: int) -> torch.Tensor:
    """Return the mask [1, T, C + T] of a call, from the position that each column stands for.

    The first `stored` columns of the caches are positions 0 and on; the others are empty. The
    tokens of the call are the positions after these.
    """
    columns = [column if column < stored else None for column in range(cache_len)]
    columns += [stored + number for number in range(length)]
    rows = [
        [0.0 if at is not None and at <= stored + row else -torch.inf for at in columns]
        for row in range(length)
    ]
    return torch.tensor([rows])


@check("calls", needs=(language_model,), takes_runtime=True)
def check_calls(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Check every input of every call, for prompts in chunks and steps up to the last position.

    Tokens, each row of the masks, the rows of the tables and the last position have exact values.
    The caches are the oracle's for the positions fed, and zero after them: no padding is stored.
    """
    given = subject.session(runtime)
    text = text_of("seeded", SEED, given.layout.context, given.layout.vocab_size)
    _, keys, values = subject.reference(torch.tensor(text))
    bound = tolerances(subject, runtime)["caches"]
    splits = {"full chunks": (0,), "single steps": (1,), "chunks and steps": (3, 1, 2, 1, 1)}
    for name, cycle in splits.items():
        methods = {method: Recorded(given.methods[method]) for method in given.methods}
        session = type(given)(methods, given.layout)
        wrong: list[str] = []
        compared, worst = 0, 0.0
        for size in _sizes(given, cycle):
            position = session.position
            phase: PhaseName = "decode" if size == 1 else "prefill"
            session.feed(text[position : position + size], phase)
            called: Phase = getattr(given.layout, phase)
            inputs = methods[called.method].last
            fed = text[: position + size]
            problems = _call_problems(subject, called, inputs, fed, position)
            wrong += [f"at position {position}, {problem}" for problem in problems]
            compared += sum(map(torch.numel, inputs))
            if stored := min(position, given.layout.cache_len):
                held = [inputs[c.k_in][0, :, :stored] for c in called.caches]
                held += [inputs[c.v_in][0, :, :stored] for c in called.caches]
                worst = max(worst, caches_error(held, (*keys, *values)).relative)
        yield Finding(
            "calls",
            name,
            ok=not wrong,
            message=f"{len(wrong)} inputs are wrong; the first: {wrong[0] if wrong else ''}",
            comparisons=compared,
            figures={f"caches in {name}": Figure(worst, "", bound)},
        )


def _sizes(session: Session, cycle: Sequence[int]) -> Iterator[int]:
    """Yield sizes of calls that fill a context; 0 stands for as many tokens as a call takes."""
    fed, layout = 0, session.layout
    for size in itertools.cycle(cycle):
        tail = max(0, fed - layout.cache_len)
        longest = min(layout.prefill.input_len - tail, layout.context - fed)
        if not longest:
            return
        taken = min(size or longest, longest)
        yield taken
        fed += taken


def _call_problems(
    subject: Subject,
    called: Phase,
    inputs: Sequence[torch.Tensor],
    text: Sequence[int],
    position: int,
) -> Iterator[str]:
    """Yield the inputs of a call that are wrong; `text` ends with the tokens of the call."""
    layout, size = subject.session(REFERENCE).layout, called.input_len
    stored = min(position, layout.cache_len)
    window = list(text[stored:])
    rows = len(window)
    if inputs[TOKENS_INPUT].tolist() != [window + [0] * (size - rows)]:
        yield f"the tokens are {inputs[TOKENS_INPUT].tolist()[0]}, not {window} and zeros"
    for index, cache_len in _masks(subject, called.method):
        mask, golden = inputs[index].float(), golden_mask(stored, size, cache_len)
        bad = [row for row in range(rows) if not torch.equal(mask[0, row], golden[0, row])]
        if bad:
            yield f"row {bad[0]} of the mask is not that of position {stored + bad[0]}"
        if not torch.isinf(mask[0, rows:, stored:cache_len]).all():
            yield "a row of padding sees cache positions that hold nothing"
        if not (mask[0] == 0).any(-1).all():
            yield "a row of the mask shows nothing, so that its softmax is NaN"
    for name in ("cos", "sin"):
        table = getattr(layout, f"freqs_{name}")[stored : stored + rows]
        if not torch.equal(inputs[getattr(called, name)][:rows].to(table.dtype), table):
            yield f"{name} is not rows {stored} to {stored + rows - 1} of the table"
    if called.last_valid_token_pos is not None:
        last = inputs[called.last_valid_token_pos].tolist()
        if last != [rows - 1]:
            yield f"last_valid_token_pos is {last}, not [{rows - 1}]"
    for layer, cache in enumerate(called.caches):
        if inputs[cache.k_in][:, :, stored:].any() or inputs[cache.v_in][:, :, stored:].any():
            yield f"the caches of layer {layer} are not empty after {stored} positions"


def _masks(subject: Subject, method: str) -> Sequence[tuple[int, ...]]:
    """Return the index and the cache length of each mask of a method."""
    constants = subject.artifact.constants
    prefixes = {name: prefix for prefix, name in described_methods(constants).items()}
    return ConstantReader(constants).table(f"{prefixes[method]}mask_specs", 2)


@check("to-the-end", needs=(language_model,), takes_runtime=True)
def check_to_the_end(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Generate until the context is full, after prompts of several lengths.

    The number of tokens must be that of the positions left and one, and each token the oracle's
    where the oracle decides.
    """
    layout = subject.session(runtime).layout
    context, size = layout.context, layout.prefill.input_len
    allowed = max(tolerances(subject, runtime).values())
    for length in sorted({1, min(size, context), min(size + 1, context), context - 1, context}):
        prompt = text_of("seeded", length, max(1, length), layout.vocab_size)
        made = list(generate(subject.session(runtime), prompt, context + 1))
        chosen = [step.token for step in made]
        logits, _, _ = subject.reference(torch.tensor(prompt + chosen[:-1]))
        wanted = logits[len(prompt) - 1 :]
        agreement = top_agreement(torch.tensor(chosen), wanted, allowed * float(wanted.abs().max()))
        ends = len(made) == context - len(prompt) + 1 and made[-1].finish == "context"
        yield Finding(
            "to-the-end",
            f"a prompt of {len(prompt)} tokens",
            ok=ends and agreement.agreed == agreement.decided,
            message=f"{len(made)} tokens, the last with finish {made[-1].finish}; "
            f"{agreement.decided - agreement.agreed} of {agreement.decided} are not the oracle's",
            comparisons=agreement.decided + 1,
            facts={"tokens": len(made)},
        )


@check("stops", needs=(language_model,), takes_runtime=True)
def check_stops(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Stop at a token where it first comes up, at no other, and at none without stop tokens."""
    layout = subject.session(runtime).layout
    length = min(layout.prefill.input_len + 1, layout.context - 1)
    prompt = text_of("seeded", SEED, max(1, length), layout.vocab_size)

    def made(stop_tokens: Collection[int]) -> list[GeneratedToken]:
        return list(generate(subject.session(runtime), prompt, _SOME, stop_tokens))

    steps = made(())
    free, expected = [step.token for step in steps], min(_SOME, layout.context - len(prompt) + 1)
    yield Finding(
        "stops",
        "no stop tokens",
        ok=len(free) == expected and steps[-1].finish in ("max_new_tokens", "context"),
        message=f"{len(free)} tokens, not {expected}, the last with finish {steps[-1].finish}",
        comparisons=expected,
    )
    for token in dict.fromkeys(free):
        found, count = made({token}), free.index(token) + 1
        ends = [step.finish for step in found] == [None] * (count - 1) + ["stop_token"]
        yield Finding(
            "stops",
            f"stop token {token}",
            ok=ends and [step.token for step in found] == free[:count],
            message=f"{len(found)} tokens, the last with finish {found[-1].finish}; {count} and "
            "stop_token are expected",
            comparisons=len(found),
        )
    others = set(range(layout.vocab_size)) - set(free)
    again = [step.token for step in made(others)]
    yield Finding(
        "stops", "stop tokens that never come", again == free, "they change the tokens", len(free)
    )


def special_tokens(tokenizer: Path) -> Check[Subject]:
    """Return a check of a text with BOS, without it, with EOS, and with no special token at all.

    Raises HarnessError for a bad tokenizer.
    """
    loaded = load_tokenizer(tokenizer)
    plain = replace(loaded, prefix=(), stop_tokens=frozenset()).encode(_TEXT)
    bos = loaded.bos if loaded.bos is not None else 0

    def find(subject: Subject, runtime: str) -> Iterator[Finding]:
        allowed = max(tolerances(subject, runtime).values())
        for name, prefix, expected in (
            ("with BOS", (bos,), [bos, *plain]),
            ("without BOS", (), plain),
        ):
            used = replace(loaded, prefix=prefix, stop_tokens=frozenset())
            tokens = used.encode(_TEXT)
            have = subject.session(runtime).prefill(tokens)
            off = error(have, subject.reference(torch.tensor(expected))[0][-1])
            yield Finding(
                "special-tokens",
                name,
                ok=tokens == expected,
                message=f"the text is {tokens}, not {expected}",
                comparisons=off.count,
                figures={f"logits {name}": Figure(off.relative, "", allowed)},
            )
            free = [t for _, t in generate_text(subject.session(runtime), used, tokens, _SOME)]
            last = free[len(free) // 2].token
            count = [step.token for step in free].index(last) + 1
            ending = replace(used, stop_tokens=frozenset({last}))
            made = list(generate_text(subject.session(runtime), ending, tokens, _SOME))
            yield Finding(
                "special-tokens",
                f"{name}, EOS {last}",
                ok=len(made) == count
                and made[-1][0] == ""
                and made[-1][1].finish == "stop_token"
                and free[-1].finish == "max_new_tokens",
                message=f"{len(made)} tokens with EOS, not {count}; {len(free)} without it, the "
                f"last with finish {free[-1].finish}",
                comparisons=len(free),
            )

    return Check("special-tokens", find, (language_model,), takes_runtime=True)


@check("lookahead", needs=(language_model,), takes_runtime=True)
def check_lookahead(subject: Subject, runtime: str) -> Iterator[Finding]:
    """Check that lookahead decoding gives greedy's tokens, to the last position, or is refused.

    It is refused where the method returns one row of logits, or takes too few tokens.
    """
    session = subject.session(runtime)
    layout = session.layout
    size, context = layout.prefill.input_len, layout.context
    prompts = {
        f"{kind}, {length} tokens": text_of(kind, 1, min(length, context), layout.vocab_size)
        for kind, length in (("repeated", 1), ("repeated", size + 3), ("seeded", size))
    }
    greedy = {}
    if layout.full_logits:
        greedy = {name: _generated(subject, runtime, prompt) for name, prompt in prompts.items()}
    for sizes in _LOOKAHEADS:
        lookahead = Lookahead(*sizes)
        if not layout.full_logits or lookahead.rows > size:
            yield Finding(
                "lookahead",
                str(lookahead),
                ok=_is_refused(subject, runtime, lookahead),
                message="it does not fit the method, but it is not refused",
                comparisons=1,
            )
            continue
        for name, prompt in prompts.items():
            made = _generated(subject, runtime, prompt, lookahead)
            yield Finding(
                "lookahead",
                f"{lookahead}, {name}",
                ok=made == greedy[name],
                message=_first_difference(made, greedy[name]),
                comparisons=len(greedy[name]),
            )


def _generated(
    subject: Subject, runtime: str, prompt: list[int], lookahead: Lookahead | None = None
) -> list[tuple[int, Finish | None]]:
    """Return the tokens after a prompt up to the last position, each with its finish."""
    session = subject.session(runtime)
    made = generate(session, prompt, session.layout.context, lookahead=lookahead)
    return [(step.token, step.finish) for step in made]


def _first_difference(
    made: Sequence[tuple[int, Finish | None]], greedy: Sequence[tuple[int, Finish | None]]
) -> str:
    pairs = itertools.zip_longest(made, greedy)
    for number, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            return f"it gives {ours} as token {number}, greedy {theirs}"
    return ""


def _is_refused(subject: Subject, runtime: str, lookahead: Lookahead) -> bool:
    try:
        list(generate(subject.session(runtime), [0], 2, lookahead=lookahead))
    except HarnessError:
        return True
    return False
