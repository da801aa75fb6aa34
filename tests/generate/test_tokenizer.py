"""Each family of tokenizers: encode, decode, special ids, bounds, and errors for wrong files."""

from __future__ import annotations

import base64
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from harness.errors import HarnessError
from harness.generate import TextStream
from harness.generate.tokenizer import (
    MAX_TEXT_BYTES,
    StopTexts,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    read_text,
)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "hello world",
    " leading",
    "naïve café",
    "日本語 text",
    "👩‍👩‍👧 emoji",
    "tab\tand\nline",
    "123 + 45",
]


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def byte_level(folder: Path, settings: dict[str, object] | None = None) -> Path:
    """Write a tokenizer.json of all bytes and three special tokens, ids 256 to 258."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        write_json(folder / "tokenizer_config.json", settings)
    return folder / "tokenizer.json"


def sentence_piece(folder: Path) -> Path:
    """Write a tokenizer.model that spells unknown text in bytes, like Llama 2's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world text and line", "leading emoji hello text"] * 20),
        model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def llama3(folder: Path) -> Path:
    """Write a tokenizer.model of all bytes and two merges: 258 ranks before the special tokens."""
    tokens = [bytes([i]) for i in range(256)] + [b"he", b"ll"]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path = folder / "tokenizer.model"
    path.write_text("".join(lines))
    return path


FAMILIES = [byte_level, sentence_piece, llama3]


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return load_tokenizer(request.param(tmp_path))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokens and all(0 <= token < tokenizer.size for token in tokens)
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_the_same_text_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    before = tokenizer.encode("hello")
    tokens = tokenizer.encode(f"hello{text}")[len(before) :]
    stream = TextStream(tokenizer.decode, before)
    pieces = [stream.push(token) for token in tokens]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.end() == text


def test_a_stream_that_ends_inside_a_character_says_so(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path))
    tokens = tokenizer.encode("a€")
    stream = TextStream(tokenizer.decode)
    assert [stream.push(token) for token in tokens[:-1]] == ["a", "", ""]
    assert stream.end() == "\ufffd"


def test_a_byte_that_starts_no_character_does_not_hold_back_what_follows(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path))
    stream = TextStream(tokenizer.decode)
    stray = tokenizer.encode("€")[2]
    assert [stream.push(stray), stream.push(tokenizer.encode("x")[0])] == ["", "\ufffdx"]


def test_a_sentencepiece_word_after_the_prompt_keeps_its_space(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(sentence_piece(tmp_path))
    prompt = tokenizer.encode("hello")
    (world, *_) = tokenizer.encode("hello world")[len(prompt) :]
    assert TextStream(tokenizer.decode, prompt).push(world).startswith(" ")


def test_special_ids_of_tokenizer_json_come_from_the_files_beside_it(tmp_path: Path) -> None:
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "add_bos_token": True}
    path = byte_level(tmp_path, settings)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [7, 257]})
    tokenizer = load_tokenizer(path)
    assert tokenizer.bos == 258
    assert tokenizer.stop_tokens == {7, 257}
    assert tokenizer.encode("a") == [258, *load_tokenizer(path).vocabulary.encode("a", False)]


def framed(folder: Path, settings: dict[str, object]) -> Path:
    """Write a tokenizer.json that puts `<s>` before a text and `<|im_end|>` after it."""
    path = byte_level(folder, {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", 258), ("<|im_end|>", 257)]
    )
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    ("kind", "add"),
    [
        (byte_level, {}),
        (byte_level, {"add_bos_token": False}),
        (framed, {}),
        (framed, {"add_bos_token": True}),
        (framed, {"add_bos_token": False}),
    ],
)
def test_bos_is_where_transformers_puts_it(
    tmp_path: Path, kind: Callable[..., Path], add: dict[str, bool]
) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"bos_token": "<s>", "eos_token": "<|im_end|>", **add}
    ours = load_tokenizer(kind(tmp_path, settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id)
    wanted = theirs("hello world").input_ids
    assert ours.encode("hello world") == [token for token in wanted if token != ours.eos]


def test_a_prompt_does_not_end_with_the_token_that_ends_a_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(framed(tmp_path, {"eos_token": "<|im_end|>"}))
    assert tokenizer.prefix == (258,)
    assert tokenizer.encode("a") == [258, *tokenizer.vocabulary.encode("a", False)]
    assert tokenizer.encode("<s>a", parse_special=True) == tokenizer.encode("a")


@pytest.mark.parametrize("kind", [sentence_piece, llama3])
def test_settings_beside_a_tokenizer_model_decide_on_bos(
    tmp_path: Path, kind: Callable[..., Path]
) -> None:
    path = kind(tmp_path)
    bos = load_tokenizer(path).bos
    bare = load_tokenizer(path).vocabulary.encode("hello", False)
    assert load_tokenizer(path).encode("hello") == [bos, *bare]
    for settings in ({"add_bos_token": False}, {"bos_token": None}):
        write_json(tmp_path / "tokenizer_config.json", settings)
        assert load_tokenizer(path).encode("hello") == bare


def test_older_files_name_special_tokens_too(tmp_path: Path) -> None:
    path = byte_level(tmp_path, {"eos_token": None})
    names = {"bos_token": {"content": "<s>"}, "eos_token": "<|im_start|>"}
    write_json(tmp_path / "special_tokens_map.json", names)
    write_json(tmp_path / "config.json", {"eos_token_id": 9})
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos, tokenizer.eos) == (258, None)  # tokenizer_config.json has the last word
    assert tokenizer.stop_tokens == {9, 257}
    write_json(tmp_path / "generation_config.json", {"eos_token_id": 8})
    assert load_tokenizer(path).stop_tokens == {8, 257}


def test_special_tokens_that_end_a_turn_stop_without_any_settings(tmp_path: Path) -> None:
    assert load_tokenizer(byte_level(tmp_path)).stop_tokens == {257}


def test_special_ids_of_sentencepiece(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(sentence_piece(tmp_path))
    assert (tokenizer.bos, tokenizer.stop_tokens) == (1, {2})
    assert tokenizer.encode("hello")[0] == 1
    assert tokenizer.vocabulary.encode("<s>hello</s>", parse_special=True)[0] == 1
    assert tokenizer.vocabulary.encode("<s>hello</s>", parse_special=True)[-1] == 2


def test_special_ids_of_llama3(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama3(tmp_path))
    assert tokenizer.size == 258 + 256
    assert tokenizer.bos == 258  # <|begin_of_text|>
    assert {259, 258 + 9} <= tokenizer.stop_tokens  # <|end_of_text|>, <|eot_id|>
    assert tokenizer.encode("hell")[:3] == [258, 256, 257]
    assert tokenizer.vocabulary.encode("<|eot_id|>", parse_special=True) == [258 + 9]
    assert tokenizer.decode([258, 256, 257, 267]) == "hell"


def test_truncation_that_a_file_asks_for_does_not_cut_a_prompt(tmp_path: Path) -> None:
    path = byte_level(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    assert len(load_tokenizer(path).encode("five!")) == 5


def test_a_folder_stands_for_the_tokenizer_in_it(tmp_path: Path) -> None:
    path = byte_level(tmp_path)
    assert load_tokenizer(tmp_path).path == path


def test_the_chat_template_makes_special_tokens(tmp_path: Path) -> None:
    path = byte_level(tmp_path, {"eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    tokenizer = load_tokenizer(path)
    plain = tokenizer.vocabulary.encode
    assert tokenizer.encode_chat("hi") == [
        256, *plain("user\nhi", False), 257, *plain("\n", False),
        256, *plain("assistant\n", False),
    ]  # fmt: skip


def test_a_template_file_and_named_templates_are_read(tmp_path: Path) -> None:
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "D"}]
    path = byte_level(tmp_path, {"chat_template": named})
    assert load_tokenizer(path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert load_tokenizer(path).chat_template == "F"


def test_a_chat_that_the_model_continues_ends_with_its_last_message(tmp_path: Path) -> None:
    path = byte_level(tmp_path, {"chat_template": TEMPLATE})
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi hi "}]
    text = load_tokenizer(path).render_chat(said, add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\nhi hi")


def test_without_a_template_chat_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(HarnessError, match="no chat template"):
        tokenizer.encode_chat("hi")


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('roles must alternate') }}",
    "{% for %}",
    "{{ 1 / 0 }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_fails_or_reaches_out_is_one_sentence(
    tmp_path: Path, template: str
) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path, {"chat_template": template}))
    with pytest.raises(HarnessError, match="chat template cannot be rendered"):
        tokenizer.encode_chat("hi")


def test_a_prompt_that_is_not_utf8_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(HarnessError, match="not valid UTF-8"):
        tokenizer.encode("\udcff")


def test_an_id_that_the_tokenizer_lacks_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(HarnessError, match=f"no token {tokenizer.size}, only 0 to"):
        tokenizer.decode([tokenizer.size])


def test_a_tokenizer_larger_than_the_logits_is_refused_with_both_sizes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path))
    with pytest.raises(HarnessError, match="largest id is 258, the model's logits are 258"):
        check_vocabulary(tokenizer, 258)


def test_a_little_smaller_is_padding_and_much_smaller_is_suspicious(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path))
    assert check_vocabulary(tokenizer, 259) is None
    assert check_vocabulary(tokenizer, 264) is None
    warning = check_vocabulary(tokenizer, 512)
    assert warning is not None and "perhaps not" in warning


NOT_TOKENIZERS = {
    "empty": b"",
    "text": b"not a tokenizer at all",
    "zeros": bytes(100),
    "json": b'{"dim": 64}',
    "half a json": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0',
    "latin-1 json": b'{"version": "\xe9"}',
    "empty vocabulary": b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}',
    "half a protobuf": b"\n\x0e\n\x05<unk>\x15\x00",
    "not base64": b"hello 5\nworld six\n",
    "a pte": b"\x1c\x00\x00\x00ET12" + bytes(40),
}


@pytest.mark.parametrize("name", NOT_TOKENIZERS)
def test_a_file_that_is_no_tokenizer_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(NOT_TOKENIZERS[name])
    with pytest.raises(HarnessError, match=str(path)) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="No such file"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(HarnessError, match=r"neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate((128 << 20) + 1)
    with pytest.raises(HarnessError, match="larger than"):
        load_tokenizer(path)


BAD_SETTINGS = [
    ("tokenizer_config.json", {"eos_token": "</s>"}, "no token '</s>'"),
    ("tokenizer_config.json", {"eos_token": 5}, "eos_token is not a token's text"),
    ("tokenizer_config.json", ["list"], "must hold a JSON object"),
    ("tokenizer_config.json", {"chat_template": 5}, "chat template is not a text"),
    ("tokenizer_config.json", {"chat_template": "x" * (1 << 19)}, "chat template is not a text"),
    ("generation_config.json", {"eos_token_id": 259}, "eos_token_id 259 is not an id"),
    ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id '2' is not an id"),
    ("config.json", {"eos_token_id": -1}, "config.json: eos_token_id -1 is not an id"),
    ("special_tokens_map.json", {"bos_token": "<bos>"}, "special_tokens_map.json beside it names"),
]


@pytest.mark.parametrize(("file", "settings", "sentence"), BAD_SETTINGS)
def test_settings_of_another_model_are_refused(
    tmp_path: Path, file: str, settings: object, sentence: str
) -> None:
    path = byte_level(tmp_path)
    write_json(tmp_path / file, settings)
    with pytest.raises(HarnessError, match=sentence):
        load_tokenizer(path)


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    path = byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(HarnessError, match="not JSON"):
        load_tokenizer(path)


def cut_by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read a text letter by letter, up to the first end of a stop text; the longest one counts."""
    for end in range(1, len(text) + 1):
        if ended := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ended))], True
    return text, False


def test_a_stop_text_ends_a_text_wherever_its_pieces_begin() -> None:
    numbers = random.Random(3)
    stopped = 0
    for _ in range(2000):
        text = "".join(numbers.choices("abc", k=numbers.randrange(12)))
        stops = ["".join(numbers.choices("abc", k=numbers.randrange(1, 5))) for _ in range(2)]
        filtered, said, rest = StopTexts(stops), "", text
        while rest:
            length = numbers.randrange(4)
            said += filtered.push(rest[:length])
            rest = rest[length:]
        wanted, found = cut_by_definition(text, stops)
        assert (said + filtered.end(), filtered.found) == (wanted, found), (text, stops)
        stopped += found
    assert 500 < stopped < 1500


def test_text_is_held_back_only_while_it_may_begin_a_stop_text() -> None:
    stops = StopTexts(["###"])
    assert [stops.push(piece) for piece in ("one ", "#", "# two", " #", "##x")] == [
        "one ", "", "## two", " ", ""
    ]  # fmt: skip
    assert stops.found and stops.end() == "" and stops.push("more") == ""


def test_a_stop_text_may_be_a_special_token_which_has_no_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path))
    stopping = tokenizer.stopping_at(["<|im_start|>", "a", "nowhere"])
    assert stopping.stop_tokens == tokenizer.stop_tokens | {256}


def test_a_text_is_read_from_a_file_or_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\n")
    assert read_text(file, "a text") == "naïve\r\n"
    with file.open(encoding="utf-8") as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        assert read_text("-", "a text") == "naïve\r\n"
    file.write_bytes(b"na\xefve")
    with pytest.raises(HarnessError, match="text: byte 2 is not UTF-8"):
        read_text(file, "a text")
    with file.open("wb") as opened:
        opened.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(HarnessError, match="larger than"):
        read_text(file, "a text")
    with pytest.raises(HarnessError, match="No such file"):
        read_text(tmp_path / "none", "a text")
