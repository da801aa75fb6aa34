"""A model's tokenizer: its vocabulary, its tokens for the start and end of a text, its chat format.

Files beside the vocabulary's own file complete it: `tokenizer_config.json` (`bos_token`,
`eos_token`, `add_bos_token`, `chat_template`), `special_tokens_map.json` where that lacks a token,
`chat_template.jinja`, and `generation_config.json` or `config.json` (`eos_token_id`).

`StopTexts` ends a text that grows piece by piece where a given text occurs in it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.generate.isolated import IsolatedVocabulary, render_chat
from harness.generate.vocabulary import Vocabulary
from harness.text import parse_json, read_file

MAX_SETTINGS_BYTES = 8 << 20  # bytes; tokenizer_config.json repeats every added token
MAX_TEMPLATE_BYTES = 256 << 10
MAX_TEXT_BYTES = 64 << 20  # of prompts, and of a text that is measured
SMALLEST_SHARE = 0.9  # exporters pad a vocabulary to a round number, by at most a few hundred

Message = dict[str, str]  # "role" and "content"


@dataclass(frozen=True)
class Tokenizer:
    """`stop_tokens` end a text or a turn; `prefix`, such as BOS, begins each text."""

    path: Path
    vocabulary: Vocabulary
    bos: int | None
    eos: int | None
    prefix: tuple[int, ...]
    stop_tokens: frozenset[int]
    special_tokens: Mapping[str, str]  # by their names in a chat template: "bos_token", "eos_token"
    chat_template: str | None

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return self.vocabulary.size

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the ids of a text after the prefix, which a text that begins with it has already.

        With `parse_special`, the names of special tokens in the text become their ids.
        """
        tokens = self.vocabulary.encode(_require_utf8(text), parse_special)
        prefix = list(self.prefix)
        return tokens if tokens[: len(prefix)] == prefix else [*prefix, *tokens]

    def encode_chat(self, text: str) -> list[int]:
        """Return the ids of a user's message in the model's chat format, up to the answer.

        Raises HarnessError when the tokenizer has no chat template, or it cannot be rendered.
        """
        rendered = self.render_chat([{"role": "user", "content": _require_utf8(text)}])
        return self.vocabulary.encode(rendered, parse_special=True)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return messages in the model's chat format.

        It ends where the model's answer begins, or without `add_generation_prompt` where the last
        message ends, so that the model continues it. Raises HarnessError as `encode_chat` does.
        """
        if self.chat_template is None:
            raise HarnessError(
                f"{self.path}: no chat template beside it (in tokenizer_config.json or "
                "chat_template.jinja): run without --chat"
            )
        text = render_chat(self.chat_template, messages, self.special_tokens, add_generation_prompt)
        if not add_generation_prompt and messages:
            last = messages[-1]["content"].strip()
            text = text[: text.rindex(last) + len(last)] if last in text else text
        return _require_utf8(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids; raises HarnessError for an id that the tokenizer lacks."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise HarnessError(
                    f"{self.path}: no token {token}, only 0 to {self.size - 1}: it is not this "
                    "model's tokenizer"
                )
        return self.vocabulary.decode(tokens)

    def stopping_at(self, texts: Collection[str]) -> Tokenizer:
        """Return this tokenizer with the special tokens among `texts` as further stop tokens.

        Special tokens have no text that `StopTexts` could find.
        """
        ids = {index for text in texts if (index := self.vocabulary.id_of(text)) is not None}
        special = {index for index in ids if not self.vocabulary.decode([index])}
        return replace(self, stop_tokens=self.stop_tokens | special)


class StopTexts:
    """Ends a text before the first of several texts that is complete in it, whatever the pieces.

    `found` says whether one is complete. The end of a piece that may begin one is held back.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self.found = False
        self._texts = [text for text in texts if text]
        self._held = ""

    def push(self, piece: str) -> str:
        """Return the text that is now certain to come before a stop text."""
        if self.found:
            return ""
        text = self._held + piece
        starts = ((text.find(stop), len(stop)) for stop in self._texts)
        places = [(start + length, start) for start, length in starts if start >= 0]
        self.found = bool(places)
        end = min(places)[1] if places else len(text) - self._begun(text)
        self._held = "" if places else text[end:]
        return text[:end]

    def end(self) -> str:
        """Return the text that was held back, when no more follows."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Return the length of the longest end of a text that begins a stop text."""
        lengths = range(min(len(text), max(map(len, self._texts), default=0)), 0, -1)
        begun = (n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._texts))
        return next(begun, 0)


def read_text(path: str | Path, what: str) -> str:
    """Return the text of a UTF-8 file, or of standard input for `-`, without a byte order mark.

    Raises HarnessError, which names `what` the file is, if it is unreadable, too large or not text.
    """
    name = "standard input" if str(path) == "-" else str(path)
    if str(path) == "-":
        data = _read_standard_input(what)
    else:
        data = read_file(Path(path), MAX_TEXT_BYTES, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HarnessError(
            f"{name}: byte {error.start} is not UTF-8: {what} is a text in UTF-8"
        ) from None


def _read_standard_input(what: str) -> bytes:
    try:
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise HarnessError(f"standard input: cannot be read ({error.strerror})") from None
    if len(data) > MAX_TEXT_BYTES:
        raise HarnessError(f"standard input: larger than {MAX_TEXT_BYTES:,} bytes: not {what}")
    return data


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer file, or the one in a folder, with the settings beside it.

    Raises HarnessError for a file that is missing, too large, or not a tokenizer, and for settings
    that name tokens which the vocabulary lacks.
    """
    path = _tokenizer_file(Path(path))
    vocabulary = IsolatedVocabulary(path)
    settings = _read_settings(path.parent / "tokenizer_config.json")
    special: dict[str, str] = {}
    ids = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos}
    for name in ids:
        file = _file_that_names(name, path.parent, settings)
        if file is None:
            continue
        text = _token_text(_read_settings(file), name, file)
        ids[name] = None if text is None else _require_id(vocabulary, text, name, file, path)
        special |= {} if text is None else {name: text}
    bos, eos = ids["bos_token"], ids["eos_token"]
    ends = vocabulary.end_tokens | set(_end_ids(vocabulary, path))
    return Tokenizer(
        path=path,
        vocabulary=vocabulary,
        bos=bos,
        eos=eos,
        prefix=_prefix(vocabulary, bos, settings.get("add_bos_token")),
        stop_tokens=frozenset(ends if eos is None else {*ends, eos}),
        special_tokens=special,
        chat_template=_chat_template(path, settings),
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> str | None:
    """Compare a tokenizer's size with a model's logits; return a warning if it is much smaller.

    Raises HarnessError if it is larger, because some text would have no logit. It is often a little
    smaller, because exporters pad vocabularies.
    """
    sizes = f"its largest id is {tokenizer.size - 1}, the model's logits are {vocab_size}"
    if tokenizer.size > vocab_size:
        raise HarnessError(f"{tokenizer.path}: not this model's tokenizer: {sizes}")
    if tokenizer.size < SMALLEST_SHARE * vocab_size:
        return f"{tokenizer.path}: perhaps not this model's tokenizer: {sizes}"
    return None


def _tokenizer_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    raise HarnessError(f"{path}: neither tokenizer.json nor tokenizer.model in this folder")


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = parse_json(read_file(path, MAX_SETTINGS_BYTES, "a file of a tokenizer"))
    except ValueError as error:
        raise HarnessError(f"{path}: not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise HarnessError(f"{path}: must hold a JSON object")
    return settings


def _file_that_names(name: str, folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """Return the file that has a special token's name, or null for one that the model lacks."""
    if name in settings:
        return folder / "tokenizer_config.json"
    file = folder / "special_tokens_map.json"
    return file if name in _read_settings(file) else None


def _token_text(settings: Mapping[str, Any], name: str, file: Path) -> str | None:
    match settings.get(name):
        case None:
            return None
        case str(text) | {"content": str(text)}:
            return text
    raise HarnessError(f"{file}: {name} is not a token's text")


def _require_id(vocabulary: Vocabulary, text: str, name: str, file: Path, path: Path) -> int:
    index = vocabulary.id_of(text)
    if index is None:
        raise HarnessError(
            f"{path}: no token {text!r}, which {file.name} beside it names as {name}: "
            "the two files belong to different models"
        )
    return index


def _prefix(vocabulary: Vocabulary, bos: int | None, add_bos: object) -> tuple[int, ...]:
    """Return the tokens before a text.

    Settings add BOS, and take it from a `tokenizer.model`; a `tokenizer.json` itself says whether
    it puts BOS there, and transformers does what it says.
    """
    rest = tuple(index for index in vocabulary.prefix if index != vocabulary.bos)
    if bos is None or bos in rest or add_bos is False:
        return rest
    return (bos, *rest) if add_bos is True or vocabulary.bos is not None else rest


def _end_ids(vocabulary: Vocabulary, path: Path) -> list[int]:
    """Return the ids that end a text by generation_config.json, or else by config.json."""
    for name in ("generation_config.json", "config.json"):
        value = _read_settings(path.parent / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        for index in ids:
            if not isinstance(index, int) or not 0 <= index < vocabulary.size:
                raise HarnessError(
                    f"{path.parent / name}: eos_token_id {index!r} is not an id of {path.name}, "
                    f"which has {vocabulary.size} tokens"
                )
        return ids
    return []


def _chat_template(path: Path, settings: Mapping[str, Any]) -> str | None:
    file = path.parent / "chat_template.jinja"
    if file.is_file():
        data = read_file(file, MAX_TEMPLATE_BYTES, "a chat template")
        template: object = data.decode("utf-8", errors="replace")
    else:
        template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        rows = (row for row in template if isinstance(row, dict) and row.get("name") == "default")
        template = next(rows, {}).get("template")
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_BYTES:
        raise HarnessError(
            f"{path}: its chat template is not a text of at most {MAX_TEMPLATE_BYTES} characters"
        )
    return template


def _require_utf8(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise HarnessError("the prompt is not valid UTF-8: check the terminal's encoding") from None
    return text
