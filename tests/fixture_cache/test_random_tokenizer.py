import json

import pytest
from tokenizers import Tokenizer

from harness.fixtures.random_tokenizer import write_tokenizer

SIZE = 2000  # more than the pairs of frequent letters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_every_token_of_the_model_has_a_text(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(SIZE))


@pytest.mark.parametrize("text", ["Hello, the weather", " naïve 🦙\n\t", "0123", "\x00\x7f"])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_merges_are_applied_and_special_tokens_stay_whole(tokenizer):
    assert tokenizer.encode("teet").tokens == ["t", "ee", "t"]  # ee is the first merge
    assert tokenizer.encode("<|im_end|>x").tokens == ["<|im_end|>", "x"]


def test_the_config_names_an_end_and_a_chat_format(folder, tokenizer):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer.token_to_id(settings["eos_token"]) == 2
    assert "add_generation_prompt" in settings["chat_template"]
