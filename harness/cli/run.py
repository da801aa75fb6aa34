"""`harness run` and `harness bench`: execute an artifact, for its text or for its times.

The text is printed as it comes. Standard output holds the text only, or with `--json` one object;
standard error holds the rest. Times are those of one runtime, or of several in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_exactly
from harness.errors import HarnessError
from harness.text import harmless, printable

if TYPE_CHECKING:
    from harness.generate import GeneratedToken
    from harness.generate.calls import CallSession
    from harness.generate.session import Session
    from harness.generate.tokenizer import Tokenizer

INTERRUPTED = 130  # the status that a shell reports for a process that Ctrl-C ended

# Option, the condition that it must meet, and the condition in words. NaN meets none.
_BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("max_new_tokens", lambda n: n >= 1, "at least 1"),
    ("temperature", lambda t: 0 <= t < math.inf, "0 (greedy) or above"),
    ("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1"),
    ("seed", lambda n: 0 <= n < 2**63, "from 0 to 2**63 - 1"),
)

_FINISH = {
    "stop_token": "the model ended its text",
    "max_new_tokens": "the number of tokens asked for",
    "context": "the context is full",
    "interrupted": "interrupted",
}


_MEMORY = (
    ("peak_memory_bytes", "peak MB", 1e6),
    ("memory_before_load_bytes", "of them libraries", 1e6),
)
# A figure's key in the JSON, the title of its column, and the divisor of the column's numbers. The
# baseline's name takes the place of {}.
_COLUMNS = (
    ("load_ms", "load ms", 1),
    ("prefill_ms_per_token", "prefill ms/token", 1),
    ("decode_ms_per_token", "decode ms/token", 1),
    ("decode_tokens_per_second", "tokens/s", 1),
    ("decode_speed_over_{}", "times {}", 1),
    *_MEMORY,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a .pte, an exported folder or an .mlpackage of a language model",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        help="its file, or a folder; needed unless FILE is a subject's name",
    )
    parser.add_argument("--prompt", required=True, metavar="S", help="the text to continue")
    parser.add_argument("--chat", action="store_true", help="put S into the model's chat format")
    parser.add_argument("--runtime", metavar="R", help="what executes it")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="X", help="nucleus sampling")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling")
    parser.add_argument("--json", action="store_true", help="print one object instead of the text")


def run(args: argparse.Namespace) -> int:
    """Generate text; return 0, or 130 when interrupted."""
    for name, holds, sentence in _BOUNDS:
        value = getattr(args, name)
        if not holds(value):
            raise HarnessError(f"--{name.replace('_', '-')} must be {sentence}, not {value}")
    if not args.prompt:
        raise HarnessError("--prompt is empty: give the text to continue")
    if args.tokenizer is None:
        raise HarnessError(
            "--tokenizer is needed: give the model's tokenizer.json or its folder, or declare the "
            "tokenizer of a subject in harness.toml"
        )
    from harness.generate.tokenizer import check_vocabulary, load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    prompt = tokenizer.encode_chat(args.prompt) if args.chat else tokenizer.encode(args.prompt)
    session, runtime = _open(args)
    args.progress.hide()  # text follows, piece by piece
    _warn(check_vocabulary(tokenizer, session.layout.vocab_size))
    _warn(_crossed(session))
    result = _generate(args, session, tokenizer, prompt)
    if args.json:
        print(json.dumps({"file": args.file, "runtime": runtime, **result.facts(session)}))
    else:
        print(f"\n{result.summary(runtime)}", file=sys.stderr)
    return INTERRUPTED if result.finish == "interrupted" else 0


def _open(args: argparse.Namespace) -> tuple[Session | CallSession, str]:
    from harness.artifact import open_artifact
    from harness.generate.calls import open_session
    from harness.runtimes import default_runtime, get_runtime

    artifact = open_artifact(args.file)
    runtime = get_runtime(args.runtime or default_runtime())
    return open_session(artifact, runtime), runtime.name


def _generate(
    args: argparse.Namespace,
    session: Session | CallSession,
    tokenizer: Tokenizer,
    prompt: list[int],
) -> _Result:
    from harness.generate import generate_text, make_sampler

    result = _Result(prompt)
    sampler = make_sampler(args.temperature, args.top_p, args.seed)
    try:
        for text, step in generate_text(session, tokenizer, prompt, args.max_new_tokens, sampler):
            result.add(step, text)
            if not args.json:
                _print_now(text)
    except KeyboardInterrupt:
        result.finish = "interrupted"
    return result


@dataclass
class _Result:
    """The generated tokens and text, and the seconds of each step."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None

    def add(self, step: GeneratedToken, text: str) -> None:
        self.tokens.append(step.token)
        self.seconds.append(step.seconds)
        self.finish = step.finish
        self.text += text

    def speeds(self) -> dict[str, dict[str, float | int | None]]:
        """Return tokens, seconds and speed of prefill and decode; None where nothing ran."""
        runs = {
            "prefill": (len(self.prompt) if self.seconds else 0, sum(self.seconds[:1])),
            "decode": (len(self.seconds[1:]), sum(self.seconds[1:])),
        }
        return {
            phase: {
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds if tokens else None,
                "ms_per_token": 1000 * seconds / tokens if tokens else None,
            }
            for phase, (tokens, seconds) in runs.items()
        }

    def facts(self, session: Session | CallSession) -> dict[str, Any]:
        """Return the object of `--json`, without the file and the runtime."""
        return {
            "mode": session.layout.mode,
            "context": session.layout.context,
            "prompt_tokens": self.prompt,
            "tokens": self.tokens,
            "text": self.text,
            "finish": self.finish,
            **self.speeds(),
        }

    def summary(self, runtime: str) -> str:
        """Return the last line: the speed of both phases, and why the text ended."""
        speeds = []
        for phase, speed in self.speeds().items():
            if speed["tokens"]:
                speeds.append(
                    f"{phase} {speed['tokens']} tokens, {speed['tokens_per_second']:.1f} tokens/s "
                    f"({speed['ms_per_token']:.2f} ms/token)"
                )
        ended = f"ended: {_FINISH[self.finish or 'interrupted']}"
        return "; ".join([f"{runtime}: {', '.join(speeds) or 'nothing ran'}", ended])


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


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness bench`."""
    parser.add_argument(
        "file", metavar="FILE", help="a .pte, an exported folder or an .mlpackage, of any model"
    )
    parser.add_argument(
        "--runtime",
        action="append",
        help="where to execute it (default: this machine's, beside eager PyTorch in fp32); "
        "several are timed in turn",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def bench(args: argparse.Namespace) -> int:
    """Print the figures and return 0; raise HarnessError when a run gives wrong logits."""
    from harness.measure import comparison
    from harness.runtimes import BASELINE

    args.progress(f"reading {args.file}")
    figures = comparison.bench(args.file, args.runtime, args.rounds, args.progress)
    if args.json:
        print(json.dumps({"runtimes": figures}, indent=2))
    else:
        _print_figures(figures, BASELINE)
    return 0


def _print_figures(figures: dict[str, dict[str, Any]], baseline: str) -> None:
    from tabulate import tabulate

    first = next(iter(figures.values()))
    peaks = {name: [row[key] / by for key, _, by in _MEMORY] for name, row in figures.items()}
    if "call_ms" in first:
        rows = [
            (name, row["load_ms"], *row["call_ms"].values(), *peaks[name])
            for name, row in figures.items()
        ]
        calls = [f"{method} ms" for method in first["call_ms"]]
        headers = ("runtime", "load ms", *calls, *(title for _, title, _ in _MEMORY))
        print(tabulate(rows, headers, floatfmt=("", ".3f", *(".3f" for _ in calls), ".0f", ".0f")))
        count = first["samples"]["call"]
        print(
            f"\nlow quartiles of {count} loads and calls after a warm-up; outputs were checked; "
            "memory is that of a process that only loads FILE and calls each method once"
        )
        return
    columns = [
        (key.format(baseline.replace(":", "_")), title.format(baseline.replace(":", " ")), by)
        for key, title, by in _COLUMNS
    ]
    rows = [
        (runtime, *(row[key] and row[key] / by for key, _, by in columns))
        for runtime, row in figures.items()
    ]
    headers = ("runtime", *(title for _, title, _ in columns))
    print(tabulate(rows, headers, floatfmt=("", ".1f", ".3f", ".3f", ".1f", ".2f", ".0f", ".0f")))
    samples = next(iter(figures.values()))["samples"]
    print(
        f"\nlow quartiles of {samples['prefill']} loads and prefills and of "
        f"{samples['decode']} decode steps, after a warm-up; every run's logits were checked; "
        "memory is that of a process that only loads FILE and runs it once"
    )
