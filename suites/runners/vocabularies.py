"""Texts, and tokenizers of every kind: SentencePiece, Hugging Face's with settings, Llama 3's."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.checks.run import check
from harness.errors import HarnessError
from harness.fixtures.grammar import documents
from harness.generate.tokenizer import load_tokenizer
from harness.results import Finding
from harness.suites.runners.scenarios import HUGGING_FACE
from harness.suites.runners.script import Bench, Scenario, Vocabulary, printed_text, told

_BYTES = 256
_N = 4
_END_OF_TURN = "<|eot_id|>"


def sentencepiece_without_bos(folder: Path) -> Vocabulary:
    """Train a SentencePiece model of 400 pieces that has EOS and no BOS."""
    from sentencepiece import SentencePieceTrainer

    path, model = folder / "without-bos.model", io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=documents(1, 400),
        model_writer=model,
        vocab_size=400,
        bos_id=-1,
        eos_id=1,
        unk_id=0,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    path.write_bytes(model.getvalue())
    return Vocabulary(path, None, frozenset({1}))


def tiktoken(folder: Path, merges: int = 0, first: int = 1) -> Vocabulary:
    """Write a Llama 3 tokenizer of every byte, and of pairs of bytes from `first` on."""
    pairs = itertools.product(range(first, first + 32), repeat=2)
    tokens = [bytes([one]) for one in range(_BYTES)]
    tokens += [bytes(pair) for pair in itertools.islice(pairs, merges)]
    path = folder / f"tiktoken-{merges}-{first}.model"
    lines = (f"{base64.b64encode(token).decode()} {n}\n" for n, token in enumerate(tokens))
    path.write_text("".join(lines), encoding="ascii")
    return Vocabulary(path, None, load_tokenizer(path).stop_tokens)


@check("sentencepiece-without-bos")
def check_sentencepiece_without_bos(bench: Bench) -> Iterator[Finding]:
    """Begin without BOS if a SentencePiece model has none."""
    words = sentencepiece_without_bos(bench.folder)
    prompts = [words.prompt(9)]
    yield from bench.findings("sentencepiece-without-bos", prompts, _N, vocabulary=words)


def _prompt(bench: Bench, words: Vocabulary, fits: Callable[[list[int]], bool]) -> str:
    """Return a prompt after which the model chooses tokens that fit."""
    for start in range(60):
        prompt = words.prompt(5 + start % 9, start)
        if fits(bench.wanted(prompt, _N, words).tokens):
            return prompt
    raise HarnessError(f"{words.path}: no prompt is continued as the check needs it")


def _cut(token: int, first: int = 128, last: int = _BYTES) -> bool:
    return first <= token < last  # bytes inside a character of several


@check("tiktoken")
def check_tiktoken(bench: Bench) -> Iterator[Finding]:
    """Continue prompts by a Llama 3 tokenizer, whose tokens are whole characters."""
    words = tiktoken(bench.folder)
    prompt = _prompt(bench, words, lambda tokens: not any(map(_cut, tokens)))
    yield from bench.findings("tiktoken", [prompt], _N, vocabulary=words)


@check("tiktoken-characters")
def check_tiktoken_characters(bench: Bench) -> Iterator[Finding]:
    """Print a text in which a token ends inside a character."""
    words = tiktoken(bench.folder, 200, 200)
    prompt = _prompt(bench, words, lambda tokens: any(_cut(t, last=456) for t in tokens))
    yield from bench.findings("tiktoken-characters", [prompt], _N, vocabulary=words)
    run = bench.run(prompt, _N, vocabulary=words)
    ids = words.encode(prompt)
    together = words.decode(ids + run.printed).removeprefix(words.decode(ids))
    apart = "".join(words.decode([token]) for token in run.printed)  # U+FFFD for each part
    have = printed_text(run, prompt)
    ok = run.status == 0 and have in (together, apart)
    message = f"{told(run)}; it printed {have!r}, not {together!r}"
    yield Finding("tiktoken-characters", "text", ok, message, 1)


@check("tiktoken-stop")
def check_tiktoken_stop(bench: Bench) -> Iterator[Finding]:
    """End the text at the end of a turn, `<|eot_id|>`, as Llama 3's chat models do."""
    index = load_tokenizer(tiktoken(bench.folder).path).vocabulary.id_of(_END_OF_TURN)
    assert index is not None
    for start in range(60):
        for merges in _merges_that_end(bench, start, index):
            words = tiktoken(bench.folder, merges)
            prompt = words.prompt(5 + start % 9, start)
            wanted = bench.wanted(prompt, 8, words)
            if wanted.tokens[-1] == index + merges and not any(map(_cut, wanted.tokens)):
                yield from bench.findings("tiktoken-stop", [prompt], 8, vocabulary=words)
                return
    raise HarnessError("no prompt makes the model choose <|eot_id|>")


def _merges_that_end(bench: Bench, start: int, index: int) -> Iterator[int]:
    """Yield numbers of pairs that make `<|eot_id|>` a token that the model chooses."""
    words = tiktoken(bench.folder)
    tokens = bench.wanted(words.prompt(5 + start % 9, start), 8, words).tokens
    return (token - index for token in tokens[1:] if token > index)


@check("printed-text")
def check_text(bench: Bench) -> Iterator[Finding]:
    """Print the text of the tokens, as the tokenizer decodes them together."""
    for start in range(4):
        prompt = bench.vocabulary.prompt(12, start)
        run = bench.run(prompt, 12)
        words, ids = bench.vocabulary, bench.vocabulary.encode(prompt)
        stops = {token for token in run.printed if token in words.stops}
        tokens = [token for token in run.printed if token not in stops]
        text = words.decode(ids + tokens).removeprefix(words.decode(ids))
        have = printed_text(run, prompt)
        wrong = f"it printed {have!r}; the text of its tokens is {text!r}" if have != text else ""
        ok = run.status == 0 and bool(run.printed) and not wrong
        yield Finding("printed-text", f"prompt {start}", ok, wrong or told(run), 1)


@check("empty-prompt")
def check_empty_prompt(bench: Bench) -> Iterator[Finding]:
    """Refuse a prompt without tokens in a sentence that names the prompt."""
    run = bench.run("", 2)
    clear = run.status != 0 and "prompt" in run.problem
    yield Finding("empty-prompt", "status", clear, "" if clear else told(run), 1)


@check("bos-of-config")
def check_bos_of_config(bench: Bench) -> Iterator[Finding]:
    """Begin with the BOS that tokenizer_config.json names and asks for."""
    settings = {"add_bos_token": True, "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    words = bench.tokenizer("bos", settings)
    yield from bench.findings("bos-of-config", [words.prompt(9)], _N, vocabulary=words)


@check("token-objects")
def check_token_objects(bench: Bench) -> Iterator[Finding]:
    """Read special tokens that are objects with `content`, as Hugging Face writes them."""
    token = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
    words = bench.tokenizer("objects", {"bos_token": None, "eos_token": "<|im_end|>"})
    assert words.config is not None
    words.config.write_text(json.dumps({"bos_token": token, "eos_token": token}))
    yield from bench.findings("token-objects", [words.prompt(9)], _N, vocabulary=words)


@check("config-without-bos")
def check_config_without_bos(bench: Bench) -> Iterator[Finding]:
    """Read a tokenizer_config.json that names no BOS."""
    words = bench.tokenizer("no-bos", {"eos_token": "<|im_end|>"})
    yield from bench.findings("config-without-bos", [words.prompt(9)], _N, vocabulary=words)


@check("no-config")
def check_no_config(bench: Bench) -> Iterator[Finding]:
    """Run a `tokenizer.json` alone, which is documented to need its configuration."""
    words = bench.tokenizer("alone", {"bos_token": None, "eos_token": "<|endoftext|>"})
    alone = Vocabulary(words.path, None, frozenset())  # no file says what ends a text
    yield from bench.findings("no-config", [words.prompt(9)], _N, vocabulary=alone)


VOCABULARIES = (
    Scenario(check_text),
    Scenario(check_text, fixture=HUGGING_FACE),
    Scenario(check_empty_prompt, fixture=HUGGING_FACE),
    Scenario(check_bos_of_config, fixture=HUGGING_FACE),
    Scenario(check_token_objects, fixture=HUGGING_FACE),
    Scenario(check_config_without_bos, fixture=HUGGING_FACE),
    Scenario(check_no_config, fixture=HUGGING_FACE),
    Scenario(check_sentencepiece_without_bos),
    Scenario(check_tiktoken),
    Scenario(check_tiktoken_characters),
    Scenario(check_tiktoken_stop),
)
