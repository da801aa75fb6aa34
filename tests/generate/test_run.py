"""`harness run`: text on standard output, the rest on standard error, one sentence per error."""

from __future__ import annotations

import json
import signal
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

import harness.artifact
import harness.generate.calls  # before a test puts another `get_runtime` in its place
import harness.runtimes
from harness.cli import main
from harness.generate.session import Session
from tests.generate.eager_llama import VOCAB, EagerMethod, EagerModel, eager_model

CONTEXT = 15
LETTERS = [*string.ascii_letters[: VOCAB - 1], "</s>"]
PROMPT = "abcab"


@dataclass
class FakeArtifact:
    path: Path
    constants: dict[str, Any]
    methods: tuple[str, ...]
    delegates: dict[str, Any] = field(default_factory=dict)
    packages: tuple[Any, ...] = ()


@dataclass
class EagerRuntime:
    model: EagerModel
    name: str = "fake"
    reason: str | None = None

    def unavailable(self) -> str | None:
        return self.reason

    def load(self, artifact: FakeArtifact, method: str) -> EagerMethod:
        return self.model.methods[method]


@pytest.fixture(params=["single", "multifunction"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EagerRuntime:
    """Make `model.pte` an artifact with a small model, on a runtime that runs it eagerly."""
    runtime = EagerRuntime(eager_model(request.param, 4, CONTEXT))
    model = runtime.model
    monkeypatch.setattr(
        harness.artifact,
        "open_artifact",
        lambda path: FakeArtifact(Path(path), model.constants, tuple(model.methods)),
    )
    monkeypatch.setattr(harness.runtimes, "get_runtime", lambda name: runtime)
    return runtime


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file open: a command looks at its file before its other words."""
    monkeypatch.setattr(harness.artifact, "open_artifact", lambda path: None)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Write a tokenizer with a token for each letter; the last id ends a text."""
    return write_tokenizer(tmp_path, LETTERS)


def write_tokenizer(folder: Path, letters: list[str]) -> Path:
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["</s>"])
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def call(tokenizer: Path, *options: str, prompt: str = PROMPT, file: str = "model.pte") -> int:
    return call_with(tokenizer, "--prompt", prompt, *options, file=file)


def call_with(tokenizer: Path, *options: str, file: str = "model.pte") -> int:
    return main(["run", file, "--tokenizer", str(tokenizer), *options])


def expected_text(runtime: EagerRuntime, prompt: str, n: int) -> str:
    tokens = runtime.model.recomputed([LETTERS.index(letter) for letter in prompt], n)
    return "".join(LETTERS[token] for token in tokens).split("</s>")[0]


def test_standard_output_is_the_text_and_nothing_else(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tokenizer, "--max-new-tokens", "6") == 0
    out, err = capsys.readouterr()
    assert out == expected_text(runtime, PROMPT, 6) + "\n"
    assert len(out) == 7
    last = err.strip().splitlines()[-1]
    assert last.startswith("fake: prefill 5 tokens, ") and "decode 5 tokens, " in last
    assert last.endswith("ended: the number of tokens asked for")


def test_json_is_one_object(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tokenizer, "--max-new-tokens", "4", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == expected_text(runtime, PROMPT, 4)
    assert [LETTERS[token] for token in result["prompt_tokens"]] == list(PROMPT)
    assert (result["context"], result["finish"]) == (CONTEXT, "max_new_tokens")
    for phase, tokens in (("prefill", 5), ("decode", 3)):
        speed = result[phase]
        assert speed["tokens"] == tokens
        first = speed["first_call_seconds"]  # the process's first call of decoding is left out
        assert (first is None) == (phase == "prefill")
        tokens, seconds = tokens - bool(first), speed["seconds"] - (first or 0)
        assert speed["tokens_per_second"] == pytest.approx(tokens / seconds)
        assert speed["ms_per_token"] == pytest.approx(1000 * seconds / tokens)


SEVERAL = [PROMPT, "c", "deabfcab"]


def test_each_prompt_starts_anew(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for prompt in SEVERAL for word in ("--prompt", prompt)]
    assert call_with(tokenizer, *options, "--max-new-tokens", "6") == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{expected_text(runtime, prompt, 6)}\n" for prompt in SEVERAL)
    assert err.count("ended: the number of tokens asked for\n") == len(SEVERAL)
    assert 'prompt 3 of 3: "deabfcab"\n' in err
    assert call_with(tokenizer, *options, "--max-new-tokens", "6", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], f"{line['text']}\n") for line in lines] == [
        *enumerate(out.splitlines(keepends=True), 1)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "\r\n".join([SEVERAL[1], " ", *SEVERAL[2:], ""])),
        ("prompts.jsonl", "\n".join(['"c"', "", json.dumps({"prompt": SEVERAL[2], "id": 1})])),
        ("-", "\n".join(SEVERAL[1:])),
    ],
)
def test_prompts_come_from_a_file_after_those_that_were_typed(
    runtime: EagerRuntime,
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
) -> None:
    monkeypatch.chdir(tokenizer.parent)
    Path(name).write_bytes(content.encode())
    with Path(name).open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert call(tokenizer, "--prompts", name, "--max-new-tokens", "4", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = ["".join(LETTERS[token] for token in line["prompt_tokens"]) for line in lines]
    assert said == SEVERAL
    assert [line["text"] for line in lines] == [expected_text(runtime, p, 4) for p in SEVERAL]


BAD_PROMPTS = [
    ("prompts.txt", "\n \n", "prompts.txt: it has no prompt"),
    ("prompts.jsonl", '"a"\nb', "prompts.jsonl, line 2: not JSON"),
    ("prompts.jsonl", '{"text": "a"}', "prompts.jsonl, line 1: write a JSON string"),
    ("prompts.jsonl", '""', "prompts.jsonl, line 1: write a JSON string"),
    ("prompts.jsonl", "[" * 100_000, "prompts.jsonl, line 1: not JSON"),
    ("none.txt", None, "none.txt: cannot be read (No such file"),
]


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(("name", "content", "expected"), BAD_PROMPTS)
def test_a_bad_file_of_prompts_is_one_sentence(
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    expected: str,
) -> None:
    file = tokenizer.parent / name
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert call(tokenizer, "--prompts", str(file)) == 2
    assert expected in sentence(capsys)


@pytest.mark.usefixtures("opened")
def test_without_a_prompt_the_two_options_are_named(
    tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_with(tokenizer) == 2
    assert "no prompt: give --prompt TEXT, or --prompts FILE" in sentence(capsys)


def test_a_prompt_that_is_too_long_is_named_before_any_text(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tokenizer, "--prompt", "a" * (CONTEXT + 1)) == 2
    assert "prompt 2 of 2: a prompt of 16 tokens is longer" in sentence(capsys)


def test_a_stop_text_ends_the_text_across_tokens_and_is_not_printed(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = expected_text(runtime, PROMPT, 8)
    stop = text[3:6]
    assert call(tokenizer, "--stop", "nowhere", "--stop", stop, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["finish"]) == (text[: text.index(stop)], "stop_text")
    assert len(result["tokens"]) == text.index(stop) + 3  # and no token after the stop text
    assert call(tokenizer, "--stop", stop, "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == text[:5].split(stop)[0] + "\n"
    assert call(tokenizer, "--stop", stop) == 0
    assert capsys.readouterr().err.strip().endswith("ended: a text of --stop")


def test_stats_are_an_object_for_each_prompt(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "c", "--max-new-tokens", "4", "--stats", "json"]
    assert call(tokenizer, *words) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{expected_text(runtime, prompt, 4)}\n" for prompt in (PROMPT, "c"))
    first, second = (json.loads(line) for line in err.splitlines() if line.startswith("{"))
    assert first["time_to_first_token_seconds"] >= first["prefill"]["seconds"] > 0
    assert (first["prompt"], first["finish"], first["runtime"]) == (1, "max_new_tokens", "fake")
    assert (first["prefill"]["tokens"], first["decode"]["tokens"]) == (5, 3)
    assert (first["calls"], second["calls"]) == (2 + 3, 1 + 3)  # a chunk has four tokens
    assert first["tokens_per_call"] == second["tokens_per_call"] == 1
    assert first["decode"]["first_call_seconds"] > 0 and "after a first call of" not in err
    assert second["decode"]["first_call_seconds"] is None
    assert (second["prompt_text"], second["source"], second["prompt_token_count"]) == ("c", None, 1)
    assert (second["token_count"], f"{second['text']}\n") == (4, out.splitlines(True)[1])


def test_a_prompt_of_a_file_is_named_by_its_line_and_blank_lines_are_told(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tokenizer.parent / "prompts.txt").write_text("ab\n\n \nc\n")
    words = ["--prompts", str(file), "--max-new-tokens", "4"]
    assert call_with(tokenizer, *words) == 0
    err = capsys.readouterr().err
    assert f'prompt 2 of 2 ({file}, line 4): "c"\n' in err
    assert f"note: {file}: lines 2, 3 are blank: no prompt\n" in err
    assert err.count("after a first call of") == err.count(", with the first call") == 1
    assert call_with(tokenizer, *words, "--stats", "json") == 0
    lines = [json.loads(x) for x in capsys.readouterr().err.splitlines() if x.startswith("{")]
    assert [line["source"] for line in lines] == [f"{file}, line 1", f"{file}, line 4"]
    file.write_text("ab\n\n" + "a" * (CONTEXT + 1))
    assert call_with(tokenizer, *words) == 2
    assert f"prompt 2 of 2 ({file}, line 3): a prompt of 16" in capsys.readouterr().err


def test_lookahead_says_the_same_from_fewer_calls_or_is_refused(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--lookahead", "2,2,2", "--json"]
    if "prefill" in runtime.model.methods:  # multifunction
        assert call(tokenizer, *words) == 2
        assert "lookahead" in sentence(capsys)
        return
    assert call(tokenizer, *words, prompt="abababab") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == expected_text(runtime, "abababab", CONTEXT - 8 + 1)
    assert result["tokens_per_call"] == result["decode"]["tokens"] / (result["calls"] - 2)
    assert call(tokenizer, "--lookahead", "2,2,2", "--temperature", "1") == 2
    assert "lookahead decoding is greedy" in sentence(capsys)


def test_a_full_context_ends_the_text_and_says_so(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tokenizer, "--max-new-tokens", "500") == 0
    out, err = capsys.readouterr()
    assert out == expected_text(runtime, PROMPT, CONTEXT - len(PROMPT) + 1) + "\n"
    assert "ended: the context is full" in err


def test_a_stop_token_is_no_text(
    runtime: EagerRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = expected_text(runtime, PROMPT, 6)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": text[3]}))
    assert call(write_tokenizer(tmp_path, LETTERS)) == 0
    out, err = capsys.readouterr()
    assert out == text[: text.index(text[3])] + "\n"
    assert "ended: the model ended its text" in err


def test_a_seed_repeats_its_text(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        call(tokenizer, "--temperature", "5", "--seed", seed)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_the_chat_template_is_used(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tokenizer.parent / "chat_template.jinja").write_text("ab{{ messages[0].content }}cd")
    assert call(tokenizer, "--chat", "--json", prompt="e") == 0
    prompt_tokens = json.loads(capsys.readouterr().out)["prompt_tokens"]
    assert [LETTERS[token] for token in prompt_tokens] == list("abecd")


def test_rows_that_pair_layers_wrongly_are_told(
    runtime: EagerRuntime, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crossed = eager_model("single", 4, CONTEXT, n_layers=12)
    runtime.model.constants.clear()
    runtime.model.constants.update(crossed.constants)
    runtime.model.methods.update(crossed.methods)
    assert call(tokenizer) == 0
    assert "warning: 10 rows of 'kv_cache_specs'" in capsys.readouterr().err


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(
    runtime: EagerRuntime,
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    decode = Session.decode

    def interrupted(session: Session, token: int) -> torch.Tensor:
        if session.position == len(PROMPT) + 3:
            signal.raise_signal(number)
        return decode(session, token)

    monkeypatch.setattr(Session, "decode", interrupted)
    assert call(tokenizer) == status
    out, err = capsys.readouterr()
    assert out == expected_text(runtime, PROMPT, 4) + "\n"
    assert err.strip().endswith("ended: interrupted")


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of standard error; standard output must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("harness run: ") and err.count("\n") == 1, err
    return err


BAD_OPTIONS = [
    ("--max-new-tokens", "0", "--max-new-tokens must be at least 1, not 0"),
    ("--max-new-tokens", "-3", "--max-new-tokens must be at least 1, not -3"),
    ("--temperature", "-1", "--temperature must be 0"),
    ("--temperature", "nan", "--temperature must be 0"),
    ("--temperature", "inf", "--temperature must be 0"),
    ("--top-p", "0", "--top-p must be above 0 and at most 1, not 0.0"),
    ("--top-p", "1.5", "--top-p must be above 0"),
    ("--top-p", "nan", "--top-p must be above 0"),
    ("--seed", "-1", "--seed must be from 0"),
    ("--seed", "9223372036854775808", "--seed must be from 0"),
    ("--stop", "", "--stop is empty"),
    ("--lookahead", "5,4", "lookahead '5,4' is not N,W,G"),
    ("--lookahead", "1,1,1", "lookahead 1,1,1 is impossible"),
]


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(("option", "value", "expected"), BAD_OPTIONS)
def test_a_bad_option_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tokenizer: Path, option: str, value: str, expected: str
) -> None:
    assert call(tokenizer, f"{option}={value}") == 2
    assert expected in sentence(capsys)


def test_an_empty_prompt_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tokenizer: Path
) -> None:
    assert call(tokenizer, prompt="") == 2
    assert "--prompt is empty" in sentence(capsys)


def test_a_prompt_longer_than_the_context_is_one_sentence(
    runtime: EagerRuntime, capsys: pytest.CaptureFixture[str], tokenizer: Path
) -> None:
    assert call(tokenizer, prompt="a" * (CONTEXT + 1)) == 2
    assert "a prompt of 16 tokens is longer than the model's context of 15" in sentence(capsys)


def test_a_tokenizer_larger_than_the_model_is_one_sentence(
    runtime: EagerRuntime, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    large = write_tokenizer(tmp_path, [*LETTERS, *string.digits])
    assert call(large) == 2
    assert "largest id is 49, the model's logits are 40" in sentence(capsys)


@pytest.mark.usefixtures("opened")
def test_a_missing_tokenizer_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(tmp_path / "none.json") == 2
    assert "No such file" in sentence(capsys)


def test_a_missing_file_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tokenizer: Path, tmp_path: Path
) -> None:
    assert call(tokenizer, file=str(tmp_path / "none.pte")) == 2
    assert "none.pte" in sentence(capsys)


@pytest.mark.parametrize("content", [b"", b"\x20\x00\x00\x00ET12" + bytes(24), b"text" * 50])
def test_a_file_that_is_no_program_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tokenizer: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "broken.pte"
    file.write_bytes(content)
    assert call(tokenizer, file=str(file)) == 2
    assert "broken.pte" in sentence(capsys)


def test_an_artifact_without_a_language_model_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tokenizer: Path, mixed_program: Any
) -> None:
    words = ["run", str(mixed_program[0]), "--tokenizer", str(tokenizer), "--prompt", PROMPT]
    assert main(words) == 2
    said = sentence(capsys)
    assert "no constants describe a language model, and method 'forward' is not called" in said
    assert "input 'x' (float32 [2, 8]) has no role in one" in said


def test_logits_that_are_nan_are_one_sentence(
    runtime: EagerRuntime,
    capsys: pytest.CaptureFixture[str],
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = next(iter(runtime.model.methods.values())).model
    nan = torch.full_like(model.weights["norm.weight"], torch.nan)
    monkeypatch.setitem(model.weights, "norm.weight", nan)
    assert call(tokenizer) == 2
    assert "40 of 40 logits are NaN" in sentence(capsys)


def test_an_unavailable_runtime_has_a_status_of_its_own(
    runtime: EagerRuntime, capsys: pytest.CaptureFixture[str], tokenizer: Path
) -> None:
    runtime.reason = "there is no such device"
    assert call(tokenizer, "--runtime", "fake") == 3
    assert "runtime fake cannot be used here: there is no such device" in sentence(capsys)


def test_core_ml_is_unavailable_elsewhere_and_an_unknown_runtime_is_named(
    capsys: pytest.CaptureFixture[str], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        model = eager_model("single", 4, CONTEXT)
        artifact = FakeArtifact(Path("model.pte"), model.constants, tuple(model.methods))
        patch.setattr(harness.artifact, "open_artifact", lambda path: artifact)
        patch.setattr("harness.runtimes.coreml.platform.system", lambda: "Linux")
        assert call(tokenizer, "--runtime", "coreml:cpu_only") == 3
        assert "Core ML is part of macOS" in sentence(capsys)
        assert call(tokenizer, "--runtime", "abacus") == 2
        assert "no runtime 'abacus'" in sentence(capsys)


def test_a_method_that_is_described_but_not_there_is_named_with_the_file(
    runtime: EagerRuntime, capsys: pytest.CaptureFixture[str], tokenizer: Path
) -> None:
    runtime.model.methods["other"] = runtime.model.methods.pop("forward")
    assert call(tokenizer) == 2
    assert "model.pte: its constants describe a method 'forward'" in sentence(capsys)
