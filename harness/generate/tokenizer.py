"""A model's tokenizer: its vocabulary, its tokens for the start and end of a text, its chat format.

Files beside the vocabulary's own file complete it: `tokenizer_config.json` (`bos_token`,
`eos_token`, `add_bos_token`, `chat_template`), `chat_template.jinja`, and `generation_config.json`
(`eos_token_id`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.generate.isolated import IsolatedVocabulary, render_chat
from harness.generate.vocabulary import Vocabulary
from harness.reading import parse_json, read_file

MAX_SETTINGS_BYTES = 8 << 20  # bytes; tokenizer_config.json repeats every added token
MAX_TEMPLATE_BYTES = 256 << 10
SMALLEST_SHARE = 0.9  # exporters pad a vocabulary to a round number, by at most a few hundred

Message = dict[str, str]  # "role" and "content"


@dataclass(frozen=True)
class Tokenizer:
    """`stop_tokens` end a text or a turn; `size` is one more than the largest id."""

    path: Path
    vocabulary: Vocabulary
    bos: int | None
    add_bos: bool
    stop_tokens: frozenset[int]
    special_tokens: Mapping[str, str]  # by their names in a chat template: "bos_token", "eos_token"
    chat_template: str | None

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return self.vocabulary.size

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text with the prefix of the model's training (such as BOS)."""
        tokens = self.vocabulary.encode(_require_utf8(text), parse_special=False)
        if self.add_bos and self.bos is not None and tokens[:1] != [self.bos]:
            return [self.bos, *tokens]
        return tokens

    def encode_chat(self, text: str) -> list[int]:
        """Return the ids of a user's message in the model's chat format, up to the answer.

        Raises HarnessError when the tokenizer has no chat template, or it cannot be rendered.
        """
        if self.chat_template is None:
            raise HarnessError(
                f"{self.path}: no chat template beside it (in tokenizer_config.json or "
                "chat_template.jinja): run without --chat"
            )
        message = {"role": "user", "content": _require_utf8(text)}
        rendered = render_chat(self.chat_template, [message], self.special_tokens)
        return self.vocabulary.encode(_require_utf8(rendered), parse_special=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids; raises HarnessError for an id that the tokenizer lacks."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise HarnessError(
                    f"{self.path}: no token {token}, only 0 to {self.size - 1}: it is not this "
                    "model's tokenizer"
                )
        return self.vocabulary.decode(tokens)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer file, or the one in a folder, with the settings beside it.

    Raises HarnessError for a file that is missing, too large, or not a tokenizer, and for settings
    that name tokens which the vocabulary lacks.
    """
    path = _tokenizer_file(Path(path))
    vocabulary = IsolatedVocabulary(path)
    settings = _read_settings(path.parent / "tokenizer_config.json")
    generation = _read_settings(path.parent / "generation_config.json")
    special = {
        name: text
        for name in ("bos_token", "eos_token")
        if (text := _token_text(settings, name, path)) is not None
    }
    ids = {name: _require_id(vocabulary, name, text, path) for name, text in special.items()}
    ends = set(vocabulary.end_tokens) | set(_end_ids(generation, vocabulary, path))
    if "eos_token" in ids:
        ends.add(ids["eos_token"])
    return Tokenizer(
        path=path,
        vocabulary=vocabulary,
        bos=ids.get("bos_token", vocabulary.bos),
        add_bos=settings.get("add_bos_token") is True,
        stop_tokens=frozenset(ends),
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


def _token_text(settings: Mapping[str, Any], name: str, path: Path) -> str | None:
    match settings.get(name):
        case None:
            return None
        case str(text) | {"content": str(text)}:
            return text
    raise HarnessError(f"{path.parent / 'tokenizer_config.json'}: {name} is not a token's text")


def _require_id(vocabulary: Vocabulary, name: str, text: str, path: Path) -> int:
    index = vocabulary.id_of(text)
    if index is None:
        raise HarnessError(
            f"{path}: no token {text!r}, which tokenizer_config.json beside it names as {name}: "
            "the two files belong to different models"
        )
    return index


def _end_ids(generation: Mapping[str, Any], vocabulary: Vocabulary, path: Path) -> list[int]:
    value = generation.get("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    for index in ids:
        if not isinstance(index, int) or not 0 <= index < vocabulary.size:
            raise HarnessError(
                f"{path.parent / 'generation_config.json'}: eos_token_id {index!r} is not an id of "
                f"{path.name}, which has {vocabulary.size} tokens"
            )
    return ids


def _chat_template(path: Path, settings: Mapping[str, Any]) -> str | None:
    file = path.parent / "chat_template.jinja"
    if file.is_file():
        data = read_file(file, MAX_TEMPLATE_BYTES, "a chat template")
        template: object = data.decode("utf-8", errors="replace")
    else:
        template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
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
