import json

import pytest
import torch
from tokenizers import Tokenizer

from fixtures import tiny
from harness.llama.checkpoint import load_checkpoint
from harness.llama.config import load_params
from harness.llama.model import Llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.build(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_activations_are_healthy_and_logits_have_contrast(folder):
    config = load_params(folder / "params.json")
    oracle = Llama(config, load_checkpoint(folder / "checkpoint.pth", config))
    tokens = torch.randint(512, (100,), generator=torch.Generator().manual_seed(0))
    logits, keys, values = oracle(tokens)
    assert 1.5 < logits.std() < 3
    assert all(0.5 < cache.std() < 2 for cache in keys + values)
    best = logits.softmax(-1).amax(-1)
    assert 0.02 < best.mean() < 0.5  # neither flat nor one-hot


def test_the_model_is_grouped_and_deep_enough_to_be_cut(folder):
    config = load_params(folder / "params.json")
    assert config.n_layers >= 3 and config.n_heads > config.n_kv_heads > 1


def test_every_token_of_the_model_has_a_text(tokenizer):
    assert tokenizer.get_vocab_size() == tiny.PARAMS["vocab_size"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(512))


@pytest.mark.parametrize("text", ["Hello, the weather", " naïve 🦙\n\t", "0123", "\x00\x7f"])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_merges_are_applied_and_special_tokens_stay_whole(tokenizer):
    assert tokenizer.encode("teet").tokens == ["t", "ee", "t"]  # ee is the first merge
    assert tokenizer.encode("tone").tokens == ["to", "ne"]
    assert tokenizer.encode("<|im_end|>x").tokens == ["<|im_end|>", "x"]


def test_the_config_names_an_end_and_a_chat_format(folder, tokenizer):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer.token_to_id(settings["eos_token"]) == 2
    assert "add_generation_prompt" in settings["chat_template"]
