"""`harness run`: continue prompts with an artifact.

The text is printed as it comes. Standard output holds the texts only, or with `--json` one object
for each prompt; standard error holds the rest. Each prompt starts from empty caches.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.cli.output import INTERRUPTED, print_exactly
from harness.cli.text import Prompt, add_tokenizer_argument, open_tokenizer, read_prompts
from harness.errors import HarnessError
from harness.text import clip, harmless, printable

if TYPE_CHECKING:
    from harness.generate import GeneratedToken
    from harness.generate.calls import CallSession
    from harness.generate.lookahead import Lookahead
    from harness.generate.session import Session
    from harness.generate.tokenizer import Tokenizer

_SHOWN = 60  # characters of a prompt, before the text of each of several

# Option, the condition that it must meet, and the condition in words. NaN meets none.
_BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("max_new_tokens", lambda n: n >= 1, "at least 1"),
    ("temperature", lambda t: 0 <= t < math.inf, "0 (greedy) or above"),
    ("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1"),
    ("seed", lambda n: 0 <= n < 2**63, "from 0 to 2**63 - 1"),
)

_FINISH = {
    "stop_token": "the model ended its text",
    "stop_text": "a text of --stop",
    "max_new_tokens": "the number of tokens asked for",
    "context": "the context is full",
    "interrupted": "interrupted",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "BOS begins a prompt if the tokenizer's own files say so (add_bos_token, tokenizer.json). "
        "EOS and eos_token_id of generation_config.json or config.json end a text."
    )
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="a .pte, an exported folder or an .mlpackage of a language model",
    )
    add_tokenizer_argument(parser)
    repeated: dict[str, Any] = {"action": "append", "default": []}
    add("--prompt", **repeated, metavar="S", help="a text to continue; may be repeated")
    add(
        "--prompts",
        **repeated,
        metavar="F",
        help="a file with a prompt in each line, or '-': standard input; in a .jsonl file, a line "
        'is a JSON string or {"prompt": "..."}, so that a prompt may have line breaks',
    )
    add("--chat", action="store_true", help="put each prompt into the model's chat format")
    add("--runtime", metavar="R", help="what executes it")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="of each prompt (128)")
    add(
        "--stop",
        **repeated,
        metavar="S",
        help="end at this text and do not print it; may be repeated",
    )
    add(
        "--lookahead",
        metavar="N,W,G",
        help="decode several tokens in one call: the n-gram size, the window, and the number of "
        "n-grams to verify; greedy, and for full-logit artifacts (single)",
    )
    add("--temperature", type=float, default=0.0, metavar="X", help="0: greedy")
    add("--top-p", type=float, default=1.0, metavar="X", help="nucleus sampling")
    add("--seed", type=int, default=0, metavar="N", help="of the sampling, for each prompt")
    add(
        "--stats",
        choices=("line", "json"),
        default="line",
        help="speeds on standard error, for each prompt: a line, or a JSON object",
    )
    add("--json", action="store_true", help="print an object for each prompt instead of its text")


def run(args: argparse.Namespace) -> int:
    """Generate text for each prompt; return 0, or 130 when interrupted."""
    for name, holds, sentence in _BOUNDS:
        value = getattr(args, name)
        if not holds(value):
            raise HarnessError(f"--{name.replace('_', '-')} must be {sentence}, not {value}")
    prompts = [*map(Prompt, args.prompt), *read_prompts(args.prompts)]
    if not prompts:
        raise HarnessError("no prompt: give --prompt TEXT, or --prompts FILE with a line or more")
    from harness.generate.lookahead import Lookahead
    from harness.generate.tokenizer import check_vocabulary

    lookahead = None if args.lookahead is None else Lookahead.parse(args.lookahead)
    tokenizer = open_tokenizer(args).stopping_at(args.stop)
    encode = tokenizer.encode_chat if args.chat else tokenizer.encode
    tokens = [encode(prompt.text) for prompt in prompts]
    session, runtime = _open(args, tokenizer.size)
    names = [_named(prompt, number, len(prompts)) for number, prompt in enumerate(prompts, 1)]
    _check_lengths(tokens, names, session)
    _warn(check_vocabulary(tokenizer, session.layout.vocab_size))
    _warn(_crossed(session))
    for number, prompt in enumerate(prompts):
        if number:
            session.reset()
        args.progress(f"{names[number]}feeding the prompt")
        if len(prompts) > 1 and not args.json:
            said = clip(json.dumps(prompt.text, ensure_ascii=False), _SHOWN)
            print(f"{printable(names[number])}{said}", file=sys.stderr, flush=True)
        result = _Result(tokens[number], runtime, is_first=not number)
        result.take(_generate(args, session, tokenizer, tokens[number], lookahead), session, args)
        _report(args, result, session, number, prompt)
        if result.finish == "interrupted":
            return INTERRUPTED
    return 0


def _named(prompt: Prompt, number: int, count: int) -> str:
    """Return the start of a sentence about one of several prompts; "" when there is only one."""
    source = f" ({prompt.source})" if prompt.source else ""
    return f"prompt {number} of {count}{source}: " if count > 1 else ""


def _open(args: argparse.Namespace, vocabulary: int) -> tuple[Session | CallSession, str]:
    from harness.artifact import open_artifact
    from harness.artifact.hazards.narrowing import check_ids
    from harness.generate.calls import open_session
    from harness.runtimes import default_runtime, get_runtime

    args.progress(f"loading {args.file}")
    artifact = open_artifact(args.file)
    runtime = get_runtime(args.runtime or default_runtime())
    _warn(check_ids(artifact.packages, vocabulary))
    return open_session(artifact, runtime), runtime.name


def _check_lengths(
    prompts: list[list[int]], names: list[str], session: Session | CallSession
) -> None:
    """Raise HarnessError before any text is generated if a prompt cannot be fed."""
    for which, prompt in zip(names, prompts, strict=True):
        if not prompt:
            raise HarnessError(f"{which}the prompt is empty: it has no tokens to feed")
        if len(prompt) > session.room:
            raise HarnessError(
                f"{which}a prompt of {len(prompt)} tokens is longer than the model's context of "
                f"{session.room}: shorten it, or export with a longer context"
            )


def _generate(
    args: argparse.Namespace,
    session: Session | CallSession,
    tokenizer: Tokenizer,
    prompt: list[int],
    lookahead: Lookahead | None,
) -> Iterator[tuple[str, GeneratedToken, bool]]:
    """Yield the text that each token completes, the token, and whether a stop text came."""
    from harness.generate import generate_text, make_sampler
    from harness.generate.tokenizer import StopTexts

    stops = StopTexts(args.stop)
    sampler = make_sampler(args.temperature, args.top_p, args.seed)
    pieces = generate_text(session, tokenizer, prompt, args.max_new_tokens, sampler, lookahead)
    for piece, step in pieces:
        text = stops.push(piece) + (stops.end() if step.finish else "")
        yield text, step, stops.found
        if stops.found:
            return


@dataclass
class _Result:
    """The generated tokens and text of a prompt, and the seconds and calls of its steps.

    `first_token` is the time from the prompt to the first token, in seconds. The calls of the
    process's first prompt include what a runtime does once.
    """

    prompt: list[int]
    runtime: str
    is_first: bool
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    first_token: float | None = None
    prefill_calls: int = 0
    calls: int = 0

    def take(
        self,
        pieces: Iterator[tuple[str, GeneratedToken, bool]],
        session: Session | CallSession,
        args: argparse.Namespace,
    ) -> None:
        """Add all pieces, and print each at once unless an object is printed at the end."""
        start, held = time.perf_counter(), ""
        # The first two calls compile. Progress shows during both, as the line is not begun.
        first = 2 if self.is_first and sys.stdout.isatty() else 1
        try:
            for text, step, is_stopped in pieces:
                if self.first_token is None:
                    self.first_token = time.perf_counter() - start
                    self.prefill_calls = session.calls
                self.tokens.append(step.token)
                self.seconds.append(step.seconds)
                self.text += text
                self.finish = "stop_text" if is_stopped else step.finish
                held += text
                if args.json:
                    args.progress("generating", len(self.tokens), args.max_new_tokens)
                elif len(self.tokens) >= first or self.finish:
                    _print_now(held)
                    held = ""
        except KeyboardInterrupt:
            self.finish = "interrupted"
            if not args.json:
                _print_now(held)
        self.calls = session.calls

    def stats(self) -> dict[str, Any]:
        """Return the speeds; None where nothing ran.

        `tokens_per_call` counts the tokens and calls of decoding, those after the first token. The
        speed of decoding leaves out the process's first call, whose `first_call_seconds` it has.
        """
        decoded, calls = len(self.tokens[1:]), self.calls - self.prefill_calls
        # Tokens of one call of lookahead share its time: their first call cannot be left out.
        has_first_call = self.is_first and 1 < decoded <= calls
        first_call = self.seconds[1] if has_first_call else None
        return {
            "time_to_first_token_seconds": self.first_token,
            "prefill": _speed(len(self.prompt) if self.seconds else 0, sum(self.seconds[:1])),
            "decode": _speed(decoded, sum(self.seconds[1:]), first_call),
            "calls": self.calls,
            "tokens_per_call": decoded / calls if decoded and calls else None,
        }

    def summary(self) -> str:
        """Return the last line: the speed of both phases, and why the text ended."""
        stats = self.stats()
        parts = []
        for phase in ("prefill", "decode"):
            if (speed := stats[phase])["tokens"]:
                first = speed["first_call_seconds"]
                left_out = "" if first is None else f" after a first call of {1000 * first:.0f} ms"
                warm = ", with the first call" if self.is_first and phase == "prefill" else ""
                parts.append(
                    f"{phase} {speed['tokens']} tokens, {speed['tokens_per_second']:.1f} tokens/s "
                    f"({speed['ms_per_token']:.2f} ms/token{warm}){left_out}"
                )
        if (ratio := stats["tokens_per_call"] or 0) > 1:
            parts.append(f"{ratio:.2f} tokens per call")
        ended = f"ended: {_FINISH[self.finish or 'interrupted']}"
        return "; ".join([f"{self.runtime}: {', '.join(parts) or 'nothing ran'}", ended])


def _speed(tokens: int, seconds: float, first_call: float | None = None) -> dict[str, Any]:
    """Return tokens, their seconds, and the speed without a first call of one token."""
    counted = tokens - (first_call is not None)
    spent = seconds - (first_call or 0.0)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "first_call_seconds": first_call,
        "tokens_per_second": counted / spent if counted else None,
        "ms_per_token": 1000 * spent / counted if counted else None,
    }


def _report(
    args: argparse.Namespace,
    result: _Result,
    session: Session | CallSession,
    number: int,
    prompt: Prompt,
) -> None:
    """Print what is known of a prompt once its text has ended."""
    facts = {
        "prompt": number + 1,
        "prompt_text": prompt.text,
        "source": prompt.source or None,
        "text": result.text,
        "runtime": result.runtime,
        "finish": result.finish,
    }
    whole = {
        "file": args.file,
        **facts,
        "mode": session.layout.mode,
        "context": session.layout.context,
        "prompt_tokens": result.prompt,
        "tokens": result.tokens,
        **result.stats(),
    }
    if args.json:
        print(json.dumps(whole), flush=True)
    else:
        print(flush=True)  # the text has no line break at its end
    if args.stats == "json":
        counts = {"prompt_token_count": len(result.prompt), "token_count": len(result.tokens)}
        print(json.dumps({**facts, **counts, **result.stats()}), file=sys.stderr)
    elif not args.json:
        print(result.summary(), file=sys.stderr)


def _print_now(text: str) -> None:
    """Print a piece of text as the model wrote it, except that it must not drive a terminal."""
    print_exactly(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _crossed(session: Session | CallSession) -> str | None:
    rows = session.layout.crossed_rows
    if not rows:
        return None
    return (
        f"{rows} rows of 'kv_cache_specs' pair one layer's cache with another layer's update (the "
        "exporter sorts layers as text, 10 before 2); they are paired by layer here, but a runner "
        "that follows the rows computes wrong answers"
    )


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        print(f"harness run: warning: {printable(sentence)}", file=sys.stderr)
