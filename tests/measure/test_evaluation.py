"""lm-evaluation-harness gives an artifact the scores that transformers gives its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.cli import main
from harness.errors import HarnessError
from harness.generate.tokenizer import load_tokenizer
from tests.generate.test_tokenizer import byte_level
from tests.measure.test_text import CONTEXT, exports_of, save

EOS = "<|im_end|>"


def test_without_lm_eval_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lm_eval", "lm_eval.__main__"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["lm-eval", "--tasks", "any"]) == 3
    assert "pip install 'coreml-llm-harness[eval]'" in capsys.readouterr().err


class Material:
    """A Llama of transformers, its exports, and a tokenizer of bytes that both use."""

    def __init__(self, folder: Path) -> None:
        self.model = save(folder / "model", 0.0, vocab_size=259)
        template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
        byte_level(folder, {"eos_token": EOS, "chat_template": template})
        self.folder, self.tokenizer = folder, load_tokenizer(folder)
        self.exports = exports_of(folder)

    def log_probabilities(self, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Score a continuation by definition, after at most as much as the context holds."""
        fed = [*context, *continuation][:-1][-CONTEXT:]
        table = self.log_probabilities(fed)[-len(continuation) :]
        total = sum(float(row[token]) for row, token in zip(table, continuation, strict=True))
        return total, table.argmax(-1).tolist() == continuation


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    pytest.importorskip("lm_eval")
    return Material(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(params=["single", "multifunction"])
def lm(material: Material, request: pytest.FixtureRequest) -> Any:
    from harness.measure.evaluation import HarnessLM

    arguments = f"file={material.exports[request.param]},tokenizer={material.folder}"
    return HarnessLM.create_from_arg_string(
        f"{arguments},runtime=mil:widen", {"batch_size": 1, "device": None}
    )


def requests(*rows: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=row) for row in rows]


PAIRS = [
    ("one two", " three"),
    ("one", "1"),
    ("ends with a space ", "then"),
    ("far more letters than the context of the model has", " end"),
    ("", "alone"),
    ("", EOS + "x"),
]


def test_log_likelihoods_are_those_of_transformers(material: Material, lm: Any) -> None:
    encode = material.tokenizer.vocabulary.encode
    eos = material.tokenizer.eos
    found = lm.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (context, continuation), (total, is_greedy) in zip(PAIRS, found, strict=True):
        tokens = encode(continuation, True)
        spaces = context[len(context.rstrip()) :]  # they go to the continuation
        given = encode(context.rstrip(), True) or [eos]
        tokens = encode(spaces, True) + tokens
        given, tokens = (given, tokens) if tokens[0] != eos else (tokens[:1], tokens[1:])
        wanted, wanted_greedy = material.score(given, tokens)
        assert total == pytest.approx(wanted, rel=1e-5)
        assert is_greedy is wanted_greedy


def test_the_greedy_continuation_is_recognised(material: Material, lm: Any) -> None:
    tokens = material.tokenizer.encode("abc")
    best = int(material.log_probabilities(tokens)[-1].argmax())
    assert lm._score(tokens, [best])[1] and not lm._score(tokens, [(best + 1) % 256])[1]


def test_rolling_likelihoods_predict_each_token_once(material: Material, lm: Any) -> None:
    texts = ["short", "a text of more letters than two contexts of the model could ever hold"]
    found = lm.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    for text, total in zip(texts, found, strict=True):
        tokens = [material.tokenizer.eos, *material.tokenizer.encode(text)]
        wanted, done = 0.0, 1
        while done < len(tokens):  # each window but the last is fed a context that starts anew
            end = min(done + CONTEXT, len(tokens))
            start = 0 if done == 1 else end - 1 - CONTEXT
            wanted += material.score(tokens[start:done], tokens[done:end])[0]
            done = end
        assert total == pytest.approx(wanted, rel=1e-5)


def greedy(material: Material, tokens: list[int], count: int) -> str:
    made = list(tokens)
    for _ in range(count):
        made.append(int(material.log_probabilities(made)[-1].argmax()))
        if made[-1] in material.tokenizer.stop_tokens:
            made.pop()
            break
    return material.tokenizer.decode(made[len(tokens) :])


def test_text_is_the_greedy_text_up_to_a_stop(material: Material, lm: Any) -> None:
    tokens = material.tokenizer.encode("abcd")
    whole = greedy(material, tokens, 9)
    stop = whole[4:6]
    settings = [
        {"until": [], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0},
        {"until": [stop, "\n\n"], "max_gen_toks": 9},
        {"until": stop, "max_new_tokens": 9, "do_sample": True, "temperature": 0.0},
    ]
    found = lm.generate_until(requests(*(("abcd", row) for row in settings)), disable_tqdm=True)
    assert found == [whole, whole.split(stop)[0], whole.split(stop)[0]]
    long = "letters of which only the last fit"
    (cut,) = lm.generate_until(requests((long, {"until": [], "max_gen_toks": 4})))
    assert cut == greedy(material, material.tokenizer.encode(long)[4 - CONTEXT :], 4)


def test_sampling_draws_from_its_own_seed_and_unknown_options_are_refused(lm: Any) -> None:
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 3.0}
    first, second = (lm.generate_until(requests(("ab", settings)))[0] for _ in range(2))
    assert first == second != lm.generate_until(requests(("ab", {"max_gen_toks": 8})))[0]
    with pytest.raises(HarnessError, match="the generation's repetition_penalty cannot be had"):
        lm.generate_until(requests(("ab", settings | {"repetition_penalty": 1.2})))
    with pytest.raises(HarnessError, match="24 new tokens leave no room for a prompt"):
        lm.generate_until(requests(("ab", {"max_gen_toks": 24})))


def test_chats_have_the_tokenizers_template(lm: Any) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert lm.apply_chat_template(said) == "[hi][yes]"
    assert lm.apply_chat_template(said, add_generation_prompt=False) == "[hi][yes"
    assert lm.chat_template(True) == lm.tokenizer.chat_template


DOCUMENTS = [
    {"question": f"{letter} and {number}", "choices": ["x", "yes", "0 1"], "answer": number % 3}
    for letter in "abc"
    for number in range(4)
]
TASK = """
task: local
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
num_fewshot: 0
metric_list:
  - metric: acc
"""


def accuracy_of_transformers(material: Material) -> float:
    right = 0
    for row in DOCUMENTS:
        context = material.tokenizer.encode(f"{row['question']} is")
        scores = [
            material.score(context, material.tokenizer.encode(f" {choice}"))[0]
            for choice in row["choices"]
        ]
        right += scores.index(max(scores)) == row["answer"]
    return right / len(DOCUMENTS)


def test_the_task_runner_finds_the_accuracy_of_transformers(
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (tmp_path / "local.yaml").write_text(TASK.format(file=data))
    model = f"file={material.exports['single']},tokenizer={material.folder},runtime=mil:widen"
    words = ["--model_args", model, "--tasks", "local", "--include_path", str(tmp_path)]
    assert main(["lm-eval", *words, "--output_path", str(tmp_path / "out")]) == 0
    assert "harness (" in capsys.readouterr().out
    (written,) = (tmp_path / "out").rglob("results_*.json")
    result = json.loads(written.read_text())["results"]["local"]["acc,none"]
    assert result == pytest.approx(accuracy_of_transformers(material))


def test_an_error_of_ours_is_one_sentence(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_args", f"file={tmp_path},tokenizer={material.folder}", "--tasks", "arc_easy"]
    assert main(["lm-eval", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("harness lm-eval: ")
