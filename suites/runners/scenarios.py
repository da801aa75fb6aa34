"""What is run: every flag and every length of the two static runners, and what must come out.

A scenario is a check on a `Bench`; its findings are places, or what its own sentence says.
To add one: a generator with `@check(NAME)`; its `modes` and fixture are in `SCENARIOS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.checks.run import check
from harness.errors import HarnessError
from harness.results import Finding
from harness.suites.runners.places import Run
from harness.suites.runners.script import RUNNERS, Bench, Scenario, Vocabulary, began, ended, told

_N = 6  # new tokens of a short text


def _lengths(bench: Bench) -> list[int]:
    """Return prompt lengths of one to three chunks, of every remainder.

    Those of remainder 1 are apart: see `check_remainder_of_one`.
    """
    chunk = bench.layout.prefill.input_len
    return [n + chunk * (n % 3) for n in range(2, chunk + 1)]


@check("other-residues")
def check_residues(bench: Bench) -> Iterator[Finding]:
    """Continue prompts of every remainder by `input_len` but 1."""
    prompts = [bench.vocabulary.prompt(n) for n in _lengths(bench)]
    yield from bench.findings("other-residues", prompts, _N)


@check("residue-1")
def check_remainder_of_one(bench: Bench) -> Iterator[Finding]:
    """Continue prompts whose last chunk has one token, and a prompt of one token."""
    chunk = bench.layout.prefill.input_len
    prompts = [bench.vocabulary.prompt(n) for n in (1, chunk + 1, 2 * chunk + 1)]
    yield from bench.findings("residue-1", prompts, _N)


@check("token-0")
def check_token_0(bench: Bench) -> Iterator[Finding]:
    """Continue prompts that contain, begin with and end in token 0, amid others."""
    zero = bench.vocabulary.piece(0)
    text = bench.vocabulary.prompt(5)
    prompts = [f"{zero}{text}", f"{text}{zero}{text}", f"{text}{zero}", f"{zero}{zero}{text}{zero}"]
    yield from bench.findings("token-0", prompts, _N)


@check("token-0-chunk")
def check_chunk_of_token_0(bench: Bench) -> Iterator[Finding]:
    """Continue prompts with a chunk that holds token 0 only, after its first token."""
    zero, chunk = bench.vocabulary.piece(0), bench.layout.prefill.input_len
    text = bench.vocabulary.prompt(1)
    prompts = [f"{text}{zero}", f"{text}{zero * (chunk - 1)}", zero * chunk]
    yield from bench.findings("token-0-chunk", prompts, _N)


@check("ids")
def check_ids(bench: Bench) -> Iterator[Finding]:
    """Continue prompts that hold the ids at the boundaries of the vocabulary."""
    last = bench.layout.vocab_size - 1
    words = numbered_words(bench.folder, bench.layout.vocab_size)
    ids = [n for n in (0, 255, 256, 32767, 32768, 65535, 65536, last) if n <= last]
    prompts = [f"w7 w{n} w9 w{n}" for n in ids]
    held = [n for n, prompt in zip(ids, prompts, strict=True) if n in words.encode(prompt)]
    yield Finding("ids", "prompts", held == ids, f"the prompts hold {held}, not {ids}", len(ids))
    yield from bench.findings("ids", prompts, _N, vocabulary=words)


def numbered_words(folder: Path, size: int) -> Vocabulary:
    """Write a Hugging Face tokenizer whose token n is the word "wn"."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({f"w{n}": n for n in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    place = folder / "numbered"
    place.mkdir(parents=True, exist_ok=True)
    path, config = place / "tokenizer.json", place / "tokenizer_config.json"
    tokenizer.save(str(path))
    config.write_text(json.dumps({"bos_token": None, "eos_token": "w1"}), encoding="utf-8")
    return Vocabulary(path, config, frozenset({1}))


@check("full-context")
def check_full_context(bench: Bench) -> Iterator[Finding]:
    """Continue prompts that fill the context to its last positions by one token."""
    context = bench.layout.context
    prompts = [bench.vocabulary.prompt(n) for n in (context - 2, context)]
    yield from bench.findings("full-context", prompts, 1)


@check("long-prompt")
def check_long_prompt(bench: Bench) -> Iterator[Finding]:
    """Refuse a prompt of one token more than the context."""
    run = bench.run(bench.vocabulary.prompt(bench.layout.context + 1), 1)
    read = len(run.prompts) == 1  # what ends before it has read the prompt refuses nothing
    yield Finding("long-prompt", "status", read and run.status != 0, told(run), 1)


@check("last-position")
def check_last_position(bench: Bench) -> Iterator[Finding]:
    """Generate until the last position of the context has been fed."""
    length = bench.layout.context - 2 * bench.layout.prefill.input_len + 3
    prompt = bench.vocabulary.prompt(length)
    yield from bench.findings("last-position", [prompt], bench.layout.context - length + 1)


@check("beyond-context")
def check_beyond_context(bench: Bench) -> Iterator[Finding]:
    """Print the text when more tokens are asked for than the context has room for."""
    left = 4
    prompt = bench.vocabulary.prompt(bench.layout.context - left)
    yield from bench.findings("beyond-context", [prompt], left + 1, "--max_new_tokens", 100)


@check("partial-chunk")
def check_partial_chunk(bench: Bench) -> Iterator[Finding]:
    """Feed a prompt whose last chunk crosses the end of the context with its padding."""
    other = bench.with_options(max_context_len=bench.layout.context - 8)
    prompt = other.vocabulary.prompt(other.layout.context - 4)
    yield from other.findings("partial-chunk", [prompt], 2)


@check("stop")
def check_stop(bench: Bench) -> Iterator[Finding]:
    """End the text at a stop token; the tokenizer's EOS is a token that the model chooses."""
    for prompt, index in eos_cases(bench, (1, 2, 3)):
        words = bench.tokenizer(f"stop-{index}", {"bos_token": None, "eos_token": prompt[1]})
        for finding in bench.findings("stop", [prompt[0]], 12, vocabulary=words):
            yield replace(finding, where=f"{finding.where}, EOS at {index}")


@check("stop-at-once")
def check_stop_at_once(bench: Bench) -> Iterator[Finding]:
    """End the text if the first token is a stop token."""
    for prompt, _ in eos_cases(bench, (0,)):
        words = bench.tokenizer("stop-0", {"bos_token": None, "eos_token": prompt[1]})
        yield from bench.findings("stop-at-once", [prompt[0]], 12, vocabulary=words)


def eos_cases(bench: Bench, indices: tuple[int, ...]) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield a prompt, the token that the model first chooses at an index, and the index."""
    for index in indices:
        for start in range(60):
            prompt = bench.vocabulary.prompt(5 + start % 9, start)
            tokens = bench.wanted(prompt, index + 1, bench.vocabulary).tokens
            if len(tokens) > index and tokens[index] not in tokens[:index]:
                yield (prompt, bench.vocabulary.piece(tokens[index])), index
                break
        else:
            raise HarnessError(f"{bench.model}: no prompt's token {index} is new")


@check("new-tokens-0")
def check_no_new_tokens(bench: Bench) -> Iterator[Finding]:
    """Print no token for `--max_new_tokens 0`, or refuse it by name."""
    run = bench.run(bench.vocabulary.prompt(5), 0)
    if "max_new_tokens" not in run.problem:
        ended(run)
    wrong = f"it printed {len(run.printed)} tokens" if run.printed else ""
    yield Finding("new-tokens-0", "stop", not wrong, wrong, 1)


@check("temperature")
def check_temperature(bench: Bench) -> Iterator[Finding]:
    """Draw every token at `--temperature`; at 50, almost every token is an unlikely one."""
    prompt = bench.vocabulary.prompt(5)
    run = ended(bench.run(prompt, 24, "--temperature", 50, "--top_p", 1))
    last = len(bench.vocabulary.encode(prompt)) - 1
    drawn = _unlikely(run, last % bench.layout.prefill.input_len)
    wrong = "" if all(drawn) else f"{drawn.count(False)} of {len(drawn)} tokens are the likeliest"
    ok = bool(drawn) and drawn.count(False) <= 3
    facts = {"drawn": drawn.count(True)}
    yield Finding("temperature", "logits", ok, wrong or "no token", len(drawn), facts=facts)


@check("top-p")
def check_top_p(bench: Bench) -> Iterator[Finding]:
    """Choose the likeliest token at `--top_p 0`."""
    prompt = bench.vocabulary.prompt(5)
    yield from bench.findings("top-p", [prompt], _N, "--temperature", 1, "--top_p", 0)


def _unlikely(run: Run, row: int) -> list[bool]:
    """Return for each printed token whether it is not among the four likeliest.

    `row` is that of the last prompt token's logits, if a call returns those of every token.
    """
    chosen = []
    for index, token in enumerate(run.printed):
        logits = run.calls[index - len(run.printed)]["outputs"][0]
        rows = logits.reshape(-1, logits.shape[-1])
        likely = rows[min(0 if index else row, len(rows) - 1)].topk(4).indices.tolist()
        chosen.append(token not in likely)
    return chosen


@check("lookahead")
def check_lookahead(bench: Bench) -> Iterator[Finding]:
    """Generate the greedy text by lookahead, with several sizes of n-gram and window."""
    prompts = [bench.vocabulary.prompt(n) for n in (3, 17, 26)]
    for sizes in ((3, 4, 4), (2, 8, 8), (5, 2, 2), (2, 3, 1), (9, 1, 1)):
        found = bench.findings("lookahead", prompts, 20, "--lookahead", *sizes_of(*sizes))
        for finding in found:
            yield replace(finding, where=f"{finding.where} {sizes}")


@check("lookahead-count")
def check_lookahead_count(bench: Bench) -> Iterator[Finding]:
    """Print no more tokens than `--max_new_tokens` by lookahead."""
    chunk = bench.layout.prefill.input_len
    for length in (chunk + 3, 2 * chunk):
        for n in (10, 11, 12):
            prompt = bench.vocabulary.prompt(length)
            run = ended(bench.run(prompt, n, "--lookahead", *sizes_of(3, 4, 4)))
            where, message = f"{n} after {length}", f"{len(run.printed)} tokens for {n}"
            yield Finding("lookahead-count", where, 0 < len(run.printed) <= n, message, 1)


@check("lookahead-settings")
def check_lookahead_settings(bench: Bench) -> Iterator[Finding]:
    """Accept sizes that fit `input_len`: no verification, no window."""
    prompt = bench.vocabulary.prompt(9)
    for sizes in ((3, 4, 0), (2, 0, 16)):
        found = bench.findings("lookahead-settings", [prompt], 8, "--lookahead", *sizes_of(*sizes))
        for finding in found:
            yield replace(finding, where=f"{finding.where} {sizes}")


@check("lookahead-refused")
def check_lookahead_refused(bench: Bench) -> Iterator[Finding]:
    """Refuse sizes that do not fit `input_len`, with the sizes in the message."""
    run = bench.run(bench.vocabulary.prompt(5), 4, "--lookahead", *sizes_of(5, 4, 4))
    wrong = "" if run.status and "not compatible with input length" in run.problem else told(run)
    yield Finding("lookahead-refused", "status", not wrong, wrong, 1)


@check("lookahead-multifunction")
def check_lookahead_multifunction(bench: Bench) -> Iterator[Finding]:
    """Refuse lookahead for a model of last logits before it prints, and say why."""
    for sizes in ((5, 4, 4), (2, 0, 1)):
        run = bench.run(bench.vocabulary.prompt(5), 4, "--lookahead", *sizes_of(*sizes))
        clear = run.status != 0 and "logits" in run.problem and not run.printed
        wrong = "" if clear else f"{told(run)}, after {len(run.printed)} tokens"
        yield Finding("lookahead-multifunction", f"{sizes}", clear, wrong, 1)


def sizes_of(ngram: int, window: int, verifications: int) -> list[object]:
    return [
        *("--ngram_size", ngram, "--window_size", window),
        *("--n_verifications", verifications),
    ]


@check("fp32")
def check_fp32(bench: Bench) -> Iterator[Finding]:
    """Run an export with `--dtype fp32`, which the exporter offers."""
    other = bench.with_options(dtype="fp32")
    yield from other.findings("fp32", [other.vocabulary.prompt(5)], _N)


@check("input-len-1")
def check_input_len_1(bench: Bench) -> Iterator[Finding]:
    """Run an export with `--input_len 1`."""
    other = bench.with_options(input_len=1)
    yield from other.findings("input-len-1", [other.vocabulary.prompt(n) for n in (5, 9)], _N)


@check("one-method")
def check_one_method(bench: Bench) -> Iterator[Finding]:
    """Fall back to a file with `forward` only, as the script announces."""
    single = Bench(bench.scripts, bench.exporter, bench.model, "single", bench.folder)
    given = bench.arguments(bench.vocabulary)
    given[given.index("--model") + 1] = single.subject.artifact.path
    given += ["--prompt", bench.vocabulary.prompt(5), "--temperature", 0]
    run = began(bench.scripts(RUNNERS[bench.mode], *given))
    fallback = "Falling back to single" in run.stdout
    does = "falls back, and fails" if fallback else "does not fall back"
    wrong = "" if fallback and run.status == 0 else f"it {does}: {told(run)}"
    yield Finding("one-method", "status", not wrong, wrong, 1)


@check("params-context")
def check_params_context(bench: Bench) -> Iterator[Finding]:
    """Take a params.json with `max_context_len`, a field of its model's arguments."""
    params = json.loads(bench.source.params.read_text(encoding="utf-8"))
    path = bench.folder / "params.json"
    path.write_text(json.dumps(params | {"max_context_len": bench.layout.context}))
    prompt = bench.vocabulary.prompt(5)
    yield from bench.findings("params-context", [prompt], _N, "--params", path)


_SINGLE, _MULTI = ("single",), ("multifunction",)
HUGGING_FACE = "layers-12"
SCENARIOS = (
    Scenario(check_residues),
    Scenario(check_residues, fixture=HUGGING_FACE),
    Scenario(check_remainder_of_one),
    Scenario(check_token_0, fixture=HUGGING_FACE),
    Scenario(check_chunk_of_token_0, fixture=HUGGING_FACE),
    Scenario(check_ids, _SINGLE, "layers-1"),
    Scenario(check_full_context),
    Scenario(check_long_prompt),
    Scenario(check_last_position),
    Scenario(check_beyond_context),
    Scenario(check_partial_chunk, _MULTI),
    Scenario(check_stop, fixture=HUGGING_FACE),
    Scenario(check_stop_at_once, fixture=HUGGING_FACE),
    Scenario(check_no_new_tokens),
    Scenario(check_temperature),
    Scenario(check_top_p),
    Scenario(check_lookahead, _SINGLE),
    Scenario(check_lookahead_count, _SINGLE),
    Scenario(check_lookahead_settings, _SINGLE),
    Scenario(check_lookahead_refused, _SINGLE),
    Scenario(check_lookahead_multifunction, _MULTI),
    Scenario(check_fp32, _SINGLE),
    Scenario(check_input_len_1, _MULTI),
    Scenario(check_one_method, _MULTI),
    Scenario(check_params_context),
)
