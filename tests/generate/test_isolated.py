"""A tokenizer or a template that asks for endless time or memory is one sentence, and soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from harness.errors import HarnessError
from harness.generate import isolated
from harness.generate.isolated import IsolatedVocabulary, render_chat
from harness.generate.tokenizer import load_tokenizer
from harness.generate.vocabulary import read_vocabulary
from tests.generate.test_tokenizer import FAMILIES, TEMPLATE, TEXTS, byte_level


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "SECONDS", 4.0)


def changed(folder: Path, **parts: object) -> Path:
    """Write a tokenizer of all bytes with another normalizer or pre-tokenizer."""
    path = byte_level(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.save(str(path))
    return path


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def replace(pattern: str, content: str, times: int) -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Replace(pattern, content)] * times)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_what_the_file_gives_in_this_process(family, tmp_path: Path) -> None:
    path = family(tmp_path)
    here, there = read_vocabulary(path), IsolatedVocabulary(path)
    for name in ("size", "bos", "eos", "end_tokens", "prefix"):
        assert getattr(there, name) == getattr(here, name), name
    for text in (*TEXTS, "<s>a<|eot_id|>b"):
        for special in (False, True):
            tokens = here.encode(text, special)
            assert there.encode(text, special) == tokens
            assert there.decode(tokens) == here.decode(tokens)
    assert [there.id_of(name) for name in ("<s>", "no such token")] == [
        here.id_of(name) for name in ("<s>", "no such token")
    ]


EXPLODING = {
    "regular expression": ({"pre_tokenizer": split(r"(a|aa)+$")}, "a" * 60 + "b"),
    "nested quantifiers": ({"pre_tokenizer": split(r"(a+)+$")}, "a" * 60 + "b"),
    "replacement": ({"normalizer": replace("a", "a" * 100, 6)}, "a"),
    "replacement of nothing": ({"normalizer": replace("b", "b" * 20_000, 3)}, "b" * 10),
}


@pytest.mark.linux
@pytest.mark.parametrize("kind", EXPLODING)
def test_a_tokenizer_that_explodes_is_one_sentence(tmp_path: Path, kind: str) -> None:
    """A library may normalize its special tokens as it reads them: that costs the same."""
    parts, text = EXPLODING[kind]
    path = changed(tmp_path, **parts)
    start = time.monotonic()
    doing = "(encoding|reading) .*too costly"
    with pytest.raises(HarnessError, match=f"{tmp_path}.*: {doing}") as caught:
        load_tokenizer(path).encode(text)
    assert time.monotonic() - start < 40 and "\n" not in str(caught.value)


LOOPS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "product": "{{ 'x' * 10 ** 11 }}",
    "doubling": "{% set n = namespace(t='x') %}"
    "{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "width": "{{ '%999999999999d' % 1 }}",
}


@pytest.mark.linux
@pytest.mark.parametrize("kind", LOOPS)
def test_a_template_that_loops_or_grows_is_one_sentence(kind: str) -> None:
    start = time.monotonic()
    with pytest.raises(HarnessError, match="chat template") as caught:
        render_chat(LOOPS[kind], [{"role": "user", "content": "hi"}], {})
    assert time.monotonic() - start < 40 and "\n" not in str(caught.value)
    assert "run without --chat" in str(caught.value)


def test_a_sound_template_is_rendered() -> None:
    rendered = render_chat(TEMPLATE, [{"role": "user", "content": "hi"}], {"bos_token": "<s>"})
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_long_text_has_the_time_and_memory_that_it_needs(tmp_path: Path) -> None:
    text = "hello world, " * 50_000
    assert len(load_tokenizer(byte_level(tmp_path)).encode(text)) == len(text)
