"""`harness text` and `harness lm-eval`: how well an artifact predicts text, and how it does tasks.

Standard output holds a table or one object; standard error holds the rest. `read_prompts` reads the
files of prompts of `harness run`: a line each, and in a `.jsonl` file a JSON text each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cli.check import add_checkpoint_arguments
from harness.cli.output import INTERRUPTED, print_painted
from harness.errors import HarnessError, NotInstalledError
from harness.text import counted, listed, printable

if TYPE_CHECKING:
    from harness.generate.tokenizer import Tokenizer
    from harness.measure.text import Estimate, TextMeasure, TextResult

_MAX_TOKENS = 4096
_WIDE = 100  # columns: a narrower terminal gets a row for each figure
_CHARACTERS = 64  # of a text for each token to measure: longer texts are cut before they are read

# A figure's key, the title of its column, the factor of its numbers, and their format.
_COLUMNS = (
    ("perplexity", "perplexity", 1, "{:.4f} ± {:.4f}"),
    ("perplexity_over_oracle", "over the oracle's", 1, "{:.6f} ± {:.6f}"),
    ("kl_divergence", "KL divergence, nats", 1, "{:.3g} ± {:.1g}"),
    ("top1_agreement", "top-1 agreement, %", 100, "{:.2f} ± {:.2f}"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness text`."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a .pte, an exported folder or an .mlpackage of a language model",
    )
    add_tokenizer_argument(parser)
    parser.add_argument(
        "--text", metavar="F", required=True, help="a UTF-8 text, or '-': standard input"
    )
    parser.add_argument(
        "--runtime",
        action="append",
        metavar="R",
        help="what executes FILE (default: this machine's); may be repeated",
    )
    add_checkpoint_arguments(parser)
    oracle = parser.add_mutually_exclusive_group()
    oracle.add_argument(
        "--no-oracle",
        action="store_true",
        help="measure the perplexity alone, several times as fast: the oracle computes in fp64",
    )
    oracle.add_argument(
        "--unquantized",
        action="store_true",
        help="the oracle has the checkpoint's weights before quantization: the divergence holds "
        "what quantization costs",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=_MAX_TOKENS,
        metavar="N",
        help=f"measure the text's first N tokens at most (default: {_MAX_TOKENS:,})",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens of a chunk (default: the model's context, at most 2,048)",
    )
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")


def add_tokenizer_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the tokenizer of a command about texts."""
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        help="tokenizer.json, tokenizer.model, or their folder; needed unless FILE is a subject's "
        "name",
    )


def open_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """Load the tokenizer that was named; raises HarnessError without one."""
    if args.tokenizer is None:
        raise HarnessError(
            "--tokenizer is needed: give the model's tokenizer.json or its folder, or declare the "
            "tokenizer of a subject in harness.toml"
        )
    from harness.generate.tokenizer import load_tokenizer

    return load_tokenizer(args.tokenizer)


def run(args: argparse.Namespace) -> int:
    """Measure a text; return 0, or 130 when interrupted, with the figures until then."""
    if args.max_tokens < 3:
        raise HarnessError(f"--max-tokens must be at least 3, not {args.max_tokens}")
    tokenizer = open_tokenizer(args)
    from harness.generate.tokenizer import check_vocabulary, read_text

    text = read_text(args.text, "a text to measure")
    tokens = tokenizer.encode(text[: _CHARACTERS * args.max_tokens])
    is_cut = len(text) > _CHARACTERS * args.max_tokens or len(tokens) > args.max_tokens
    tokens = tokens[: args.max_tokens]
    measure = _measure(args, tokenizer.size)
    if is_cut:
        _note(f"only the first {counted(len(tokens), 'token')} are measured; see --max-tokens")
    _note(check_vocabulary(tokenizer, measure.vocab_size))
    if measure.oracle_lacks:
        _note(f"the oracle is missing: {measure.oracle_lacks}")
    result, is_interrupted = None, False
    try:
        for until_now in measure.measure(tokens, args.progress):
            result = until_now
    except KeyboardInterrupt:
        is_interrupted = True
    if result is None:
        raise KeyboardInterrupt
    if args.json:
        print(json.dumps(_facts(args, measure, result, len(tokens)), indent=2))
    else:
        _print_table(measure, result)
    if is_interrupted:
        _note(f"interrupted after {result.predicted:,} of {len(tokens) - 1:,} predicted tokens")
    return INTERRUPTED if is_interrupted else 0


def _measure(args: argparse.Namespace, vocabulary: int) -> TextMeasure:
    args.progress(f"reading {args.file}")
    from harness.artifact.hazards.narrowing import check_ids
    from harness.measure.text import TextMeasure
    from harness.runtimes import default_runtime, usable_runtimes
    from harness.subject import Subject

    located = args.located.get("file")
    subject = Subject(
        args.file,
        args.checkpoint,
        args.params,
        options=None if located is None else located.options,
    )
    _note(check_ids(subject.artifact.packages, vocabulary))
    runtimes = usable_runtimes(args.runtime or [default_runtime()])
    return TextMeasure(subject, runtimes, args.context, args.unquantized, not args.no_oracle)


def _facts(
    args: argparse.Namespace, measure: TextMeasure, result: TextResult, tokens: int
) -> dict[str, Any]:
    def plain(figures: dict[str, Estimate]) -> dict[str, Any]:
        return {name: asdict(estimate) for name, estimate in figures.items()}

    return {
        "file": args.file,
        "text": args.text,
        "mode": measure.mode,
        "context": measure.context,
        "tokens": tokens,
        "predicted": result.predicted,
        "oracle": None if result.oracle is None else plain(result.oracle),
        "runtimes": {name: plain(figures) for name, figures in result.runtimes.items()},
    }


def _print_table(measure: TextMeasure, result: TextResult) -> None:
    from tabulate import tabulate

    from harness.report import table_width

    rows = {} if result.oracle is None else {"oracle": result.oracle}
    rows |= result.runtimes
    shown = [row for row in _COLUMNS if any(row[0] in figures for figures in rows.values())]
    cells = [
        [name, *(_cell(figures.get(key), by, form) for key, _, by, form in shown)]
        for name, figures in rows.items()
    ]
    table = [["", *(title for _, title, _, _ in shown)], *cells]
    if table_width(sys.stdout) < _WIDE:
        table = [list(column) for column in zip(*table, strict=True)]
    print(tabulate(table[1:], table[0], disable_numparse=True))
    print_painted(
        f"\nover {counted(result.predicted, 'predicted token')}, in chunks of {measure.context} "
        f"({measure.mode}); ± one standard error\n"
    )


def _cell(estimate: Estimate | None, by: int, form: str) -> str:
    if estimate is None:
        return ""
    return form.format(by * estimate.value, by * estimate.standard_error)


def _note(sentence: str | None) -> None:
    if sentence is not None:
        print(f"harness text: {printable(sentence)}", file=sys.stderr)


def add_lm_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness lm-eval`; lm-evaluation-harness reads them all."""
    parser.usage = (
        "harness lm-eval --model_args file=FILE,tokenizer=T[,runtime=R] --tasks TASK [...]"
    )
    parser.epilog = (
        "Every option is one of lm_eval's; --model is `harness` unless you name another. "
        "docs/lm-eval.md has an example. It needs the extra coreml-llm-harness[eval]."
    )


def lm_eval(args: argparse.Namespace) -> int:
    """Run lm-evaluation-harness with our model class registered; return 0.

    Raises NotInstalledError without it.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        from harness.measure.evaluation import NAME  # registers the model
    except ImportError as error:
        raise NotInstalledError(
            f"lm-evaluation-harness cannot be imported ({error}): pip install "
            "'coreml-llm-harness[eval]'"
        ) from None
    words = list(args.words)
    has_command = words[:1] in (["run"], ["ls"], ["validate"])
    named = any(word in ("-M", "--model") or word.startswith("--model=") for word in words)
    if not named and words[:1] not in (["ls"], ["validate"]):
        words[int(has_command) : int(has_command)] = ["--model", NAME]
    typed, sys.argv = sys.argv, ["lm_eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = typed
    return 0


class Prompt(NamedTuple):
    """A prompt, and the file and line that it comes from; "" for one that was typed."""

    text: str
    source: str = ""


def read_prompts(files: list[str]) -> Iterator[Prompt]:
    """Yield the prompts of files; say which lines are blank and have none."""
    from harness.generate.tokenizer import read_text

    for file in files:
        lines = read_text(file, "a file of prompts").split("\n")
        lines = lines if lines[-1].strip() else lines[:-1]  # what follows the last line break
        blank = [str(number) for number, line in enumerate(lines, 1) if not line.strip()]
        if len(blank) == len(lines):
            raise HarnessError(f"{file}: it has no prompt: write one in each line")
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}, line {number}"
                plain = not file.endswith(".jsonl")
                yield Prompt(line.rstrip("\r") if plain else _json_prompt(line, where), where)
        if blank:
            which = f"lines {listed(blank)} are" if len(blank) > 1 else f"line {blank[0]} is"
            print(
                f"harness run: note: {printable(file)}: {which} blank: no prompt", file=sys.stderr
            )


def _json_prompt(line: str, where: str) -> str:
    try:
        match json.loads(line):
            case str(text) | {"prompt": str(text)} if text:
                return text
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{where}: not JSON: {error}") from None
    raise HarnessError(f'{where}: write a JSON string or {{"prompt": "..."}}, which is not empty')
