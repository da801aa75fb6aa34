"""The older scripts for Core ML language models: `export.py`, `run.py` and `run_lookahead.py`.

Their model takes the tokens, the position, the number of tokens, the caches of all layers and one
mask. Each script is run with each of its options at least once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.artifact import open_artifact
from harness.checks.accuracy import CALIBRATED_MULTIPLE, error, top_agreement
from harness.checks.run import check
from harness.errors import HarnessError
from harness.export.options import ExportOptions
from harness.files import cache_folder, locked, partial_file
from harness.models.checkpoint import load_checkpoint
from harness.models.config import parse_params
from harness.models.model import Oracle
from harness.models.quantize import exported_weights
from harness.results import Finding
from harness.runtimes import get_runtime
from harness.suites.runners.places import Run
from harness.suites.runners.script import LLAMA, RUNTIME, Bench, Scenario, ended, told
from harness.suites.runners.tools import covered

if TYPE_CHECKING:
    from harness.models import Quantization

EXPORT, RUN, RUN_LOOKAHEAD = f"{LLAMA}.export", f"{LLAMA}.run", f"{LLAMA}.run_lookahead"
_LENGTH, _CONTEXT = 8, 48
_HIDDEN = -30000.0  # the scripts' mask value
_SIZES = ("--seq_length", _LENGTH, "--max_seq_length", _CONTEXT)
_UNQUANTIZED = ExportOptions(embedding_quantize=None, linear_quantize="none")


@dataclass(frozen=True)
class Made:
    """One export by `export.py`: its options beside the sizes, and what they do to the weights."""

    options: tuple[object, ...] = ()
    weights: ExportOptions = _UNQUANTIZED
    long: bool = False  # whether the command has the long names of the options

    @property
    def quantization(self) -> Quantization:
        """How the artifact holds its weights."""
        return self.weights.quantization


PLAIN = Made()
MADE = {
    "plain": PLAIN,
    "quantized": Made(
        (
            *("--cache_size", _CONTEXT - 2 * _LENGTH, "-E", "8,32"),
            *("--coreml-quantize", "c4w", "--dtype", "fp32"),
        ),
        ExportOptions(embedding_quantize="8,32", linear_quantize="c4w", dtype="fp32"),
    ),
    "lists and splits": Made(
        (
            *("--use_cache_list", "--target_split_size", 32, "--max_splits", 2),
            *("--embedding-quantize", "4,32"),
        ),
        replace(_UNQUANTIZED, embedding_quantize="4,32"),
        long=True,
    ),
}


class Older:
    """The older scripts on a bench's model."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def command(self, made: Made, output: Path) -> list[object]:
        """Return the arguments of `export.py`."""
        source = self.bench.source
        names = ("--output_name", "--params", "--checkpoint") if made.long else ("-n", "-p", "-c")
        files = (output, source.params, source.checkpoint)
        return [
            *(word for pair in zip(names, files, strict=True) for word in pair),
            *_SIZES,
            *made.options,
        ]

    def export(self, made: Made) -> Path:
        """Return an artifact of `export.py`, which is made once and kept in the cache."""
        bench = self.bench
        facts = [bench.source.digest, *map(str, bench.exporter.versions.items())]
        key = hashlib.sha256(repr([*facts, _SIZES, made.options]).encode()).hexdigest()[:16]
        path = cache_folder("exports") / f"older-{bench.model}-{key}.pte"
        with locked(path, None):
            if not path.exists():
                output = bench.folder / "older.pte"
                output.unlink(missing_ok=True)
                run = bench.scripts(EXPORT, *self.command(made, output))
                if run.status or not output.exists():
                    raise HarnessError(f"export.py wrote no artifact: {told(run)}")
                with partial_file(path) as partial:
                    shutil.move(output, partial)
        return path

    def models(self, quantization: Quantization) -> tuple[Oracle, Oracle]:
        """Return the model in fp64, and in the artifact's own precision."""
        source = self.bench.source
        params = json.loads(source.params.read_text(encoding="utf-8"))
        # The scripts scale RoPE unless params.json says otherwise.
        config = parse_params({"use_scaled_rope": True, "rope_scale_factor": 8, **params})
        checkpoint = load_checkpoint(source.checkpoint, config, None)
        weights = exported_weights(checkpoint, config, quantization)
        width = {"fp16": torch.float16, "fp32": torch.float32}[quantization.dtype]
        return Oracle(config, weights), Oracle(config, weights, width)

    @cached_property
    def _wanted(self) -> tuple[Oracle, Oracle]:
        return self.models(PLAIN.quantization)

    def run(self, *more: object, length: int = 11) -> Run:
        """Run `run.py` greedily on a prompt; `more` may name another model."""
        given = [*self.artifact(), "--prompt", self.prompt(length), "--temperature", 0]
        return self.bench.scripts(RUN, *given, *more)

    def artifact(self, long: bool = False) -> list[object]:
        """Return the arguments that name the plain artifact and the tokenizer."""
        names = ("--model", "--tokenizer") if long else ("-m", "-t")
        return [names[0], self.export(PLAIN), names[1], self.bench.source.tokenizer]

    def eager(self, long: bool = False) -> list[object]:
        """Return the arguments that name the eager model and the tokenizer."""
        source = self.bench.source
        files = ("-p", source.params, "-c", source.checkpoint, "-t", source.tokenizer)
        if long:
            files = ("--params", source.params, "--checkpoint", source.checkpoint, *files[4:])
            return [*files, "--use_eager", "--dtype", "fp16", *_SIZES]
        cache = ("--cache_size", _CONTEXT - _LENGTH)
        return [*files, "--use_eager", "--dtype", "fp32", *_SIZES, *cache]

    def prompt(self, length: int) -> str:
        """Return a text of so many tokens, BOS among them."""
        return self.bench.vocabulary.prompt(length)

    def given_ids(self, prompt: str) -> list[int]:
        """Return the ids that `run.py` makes of a prompt: see `check_bos`."""
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(self.bench.source.tokenizer))
        ids: list[int] = processor.encode(f"<s>{prompt}")
        return ids

    def chosen(self, run: Run, prompt: str) -> tuple[list[int], list[int]]:
        """Return the ids of the prompt that a run fed, and those that it fed after them.

        Raises HarnessError when the run ended before it had fed the prompt, and when it fed ids
        that are neither the prompt's nor those that `run.py` makes of it.
        """
        ids, right = fed(run), self.bench.vocabulary.encode(prompt)
        given = right if ids[: len(right)] == right else self.given_ids(prompt)
        if ids[: len(given)] == given:
            return given, ids[len(given) :]
        raise HarnessError(
            f"{told(run)}; it fed {ids[: len(given)]}, which is neither the prompt, {right}, nor "
            f"what the script makes of it, {given}"
        )

    def against_the_oracle(self, check: str, where: str, run: Run, prompt: str) -> Finding:
        """Compare the tokens that a run fed after its prompt with the oracle's."""
        try:
            before, after = self.chosen(run, prompt)
        except HarnessError as other:
            return Finding(check, where, False, str(other), 1)
        if run.status or not after:
            return Finding(check, where, False, f"{told(run)}; it fed {len(after)} new tokens", 1)
        oracle, eager = self._wanted
        ids = torch.tensor([*before, *after])
        logits = oracle(ids)[0]
        bound = CALIBRATED_MULTIPLE * error(eager(ids)[0], logits).largest
        found = top_agreement(ids[len(before) :], logits[len(before) - 1 : -1], bound)
        message = f"{found.decided - found.agreed} of {found.decided} tokens are not the oracle's"
        facts = {"tokens": found.rows, "decided by the oracle": found.decided}
        ok = found.agreed == found.decided
        return Finding(check, where, ok, message, found.decided, facts=facts)


def fed(run: Run) -> list[int]:
    """Return the ids that the calls of a run were given, in order; HarnessError without a call."""
    if not run.calls:
        raise HarnessError(f"{told(run)}; it called no method")
    ids: list[int] = []
    for call in run.calls:
        tokens, _, length = call["inputs"][:3]
        ids += tokens[0, : int(length)].tolist()
    return ids


@check("older-export")
def check_export(bench: Bench) -> Iterator[Finding]:
    """Export with each option; the first call of each artifact gives the oracle's logits."""
    older = Older(bench)
    commands = [older.command(made, Path()) for made in MADE.values()]
    yield covered(bench, "older-export", EXPORT, commands)
    tokens = torch.tensor(bench.vocabulary.encode(older.prompt(5)))
    for name, made in MADE.items():
        oracle, eager = older.models(made.quantization)
        wanted = oracle(tokens)[0]
        bound = CALIBRATED_MULTIPLE * error(eager(tokens)[0], wanted).largest
        off = error(first_logits(older.export(made), tokens), wanted[-1])
        message = f"its logits are off by {off.largest:.3g} (<= {bound:.3g})"
        yield Finding("older-export", name, off.largest <= bound, message, off.count)


def first_logits(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Call an artifact of `export.py` with empty caches; return the logits [vocab]."""
    method = get_runtime(RUNTIME).load(open_artifact(path), "forward")
    count, (rows, columns) = len(tokens), method.inputs[-1].shape
    inputs = [torch.zeros(one.shape, dtype=getattr(torch, one.dtype)) for one in method.inputs]
    inputs[0][0, :count], inputs[2][0] = tokens, count
    inputs[-1] += _HIDDEN
    inputs[-1][:, columns - rows :] = torch.full((rows, rows), _HIDDEN).triu(1)
    return method(*inputs)[0].reshape(-1)


@check("run-py")
def check_run(bench: Bench) -> Iterator[Finding]:
    """Continue prompts of one chunk, two and a remainder; the oracle chooses the same tokens."""
    older = Older(bench)
    for length in (3, _LENGTH, _LENGTH + 3, 2 * _LENGTH + 1):
        run, prompt = older.run(length=length), older.prompt(length)
        yield older.against_the_oracle("run-py", f"a prompt of {length} tokens", run, prompt)


@check("run-py-options")
def check_run_options(bench: Bench) -> Iterator[Finding]:
    """Give each option to `run.py`: the artifact and both eager models choose the same tokens."""
    older = Older(bench)
    prompt = older.prompt(11)
    commands = {
        "short names": [*older.artifact(), "--prompt", prompt, "--temperature", 0],
        "long names": [*older.artifact(long=True), "--temperature", 0, "--top_p", 0.5],
        "eager in fp32": [*older.eager(), "--temperature", 0],
        "eager in fp16": [*older.eager(long=True), "--temperature", 0],
        "temperature 50": [*older.artifact(), "--temperature", 50, "--top_p", 1],
    }
    yield covered(bench, "run-py-options", RUN, list(commands.values()))
    runs = {
        name: bench.scripts(RUN, *command, "--prompt", prompt) for name, command in commands.items()
    }
    texts = {name: run.stdout.partition(prompt)[2] for name, run in runs.items()}
    greedy = texts["short names"]
    for name, run in runs.items():
        as_wanted = (texts[name] != greedy) if name == "temperature 50" else (texts[name] == greedy)
        message = f"{told(run)}; it prints {texts[name]!r}, greedy is {greedy!r}"
        yield Finding(
            "run-py-options", name, run.status == 0 and bool(greedy) and as_wanted, message, 1
        )


@check("run-py-text")
def check_run_text(bench: Bench) -> Iterator[Finding]:
    """Print the text of the tokens, as the tokenizer decodes them together."""
    older = Older(bench)
    run, prompt = older.run(), older.prompt(11)
    _, after = older.chosen(run, prompt)
    words, have = bench.vocabulary, run.stdout.partition(prompt)[2]
    ids = words.encode(prompt)
    text = words.decode(ids + after).removeprefix(words.decode(ids))
    ok = bool(after) and have.startswith(text)  # the last token is printed, and not fed
    yield Finding("run-py-text", "text", ok, f"it prints {have!r}; its tokens are {text!r}", 1)


@check("run-py-bos")
def check_bos(bench: Bench) -> Iterator[Finding]:
    """Feed BOS and the ids of the prompt."""
    older = Older(bench)
    wanted = bench.vocabulary.encode(older.prompt(9))
    have = fed(ended(older.run(length=9)))[: len(wanted)]
    yield Finding("run-py-bos", "ids", have == wanted, f"it feeds {have}, not {wanted}", 1)


@check("run-py-last-position")
def check_last_position(bench: Bench) -> Iterator[Finding]:
    """Generate to the last position of the context."""
    count = len(fed(ended(Older(bench).run())))
    message = f"it feeds {count} of {_CONTEXT} positions"
    yield Finding("run-py-last-position", "stop", count >= _CONTEXT, message, 1)


def _lookahead(older: Older) -> dict[str, list[object]]:
    """Return commands of `run_lookahead.py`, on the artifact and on the eager model."""
    more = ["--prompt", older.prompt(11), "--max_tokens", 16, "--temperature", 0, "--top_p", 0.9]
    sizes: list[object] = ["--ngram_size", 3, "--window_size", 2, "--n_verifications", 2]
    seed: list[object] = ["--ngrams_seed", "one two three four"]
    return {
        "artifact": [*older.artifact(), *more, *sizes, *seed],
        "artifact, long names": [*older.artifact(long=True), *more],
        "eager": [*older.eager(), *more, *sizes],
        "eager, long names": [*older.eager(long=True), *more, *sizes, *seed],
    }


@check("run-lookahead-options")
def check_lookahead_options(bench: Bench) -> Iterator[Finding]:
    """Give every option of the script in the commands of the other checks."""
    commands = list(_lookahead(Older(bench)).values())
    yield covered(bench, "run-lookahead-options", RUN_LOOKAHEAD, commands)


@check("run-lookahead")
def check_lookahead(bench: Bench) -> Iterator[Finding]:
    """Continue a prompt by lookahead on the artifact of `export.py`."""
    yield from _lookahead_findings(bench, "run-lookahead", "artifact")


@check("run-lookahead-eager")
def check_lookahead_eager(bench: Bench) -> Iterator[Finding]:
    """Continue a prompt by lookahead on the eager model."""
    yield from _lookahead_findings(bench, "run-lookahead-eager", "eager")


def _lookahead_findings(bench: Bench, check: str, kind: str) -> Iterator[Finding]:
    older = Older(bench)
    _, after = older.chosen(older.run(), older.prompt(11))
    text = bench.vocabulary.decode(after[:12])
    for name, command in _lookahead(older).items():
        if not name.startswith(kind):
            continue
        run = bench.scripts(RUN_LOOKAHEAD, *command)
        have = run.stdout.partition("Generated text:\n")[2]
        ok = run.status == 0 and bool(text) and have.startswith(text)
        yield Finding(check, name, ok, f"{told(run)}; it prints {have!r}, greedy is {text!r}", 1)


OLDER = tuple(
    Scenario(check, modes=("single",))
    for check in (
        *(check_export, check_run, check_run_options, check_run_text, check_bos),
        *(check_last_position, check_lookahead_options, check_lookahead, check_lookahead_eager),
    )
)
