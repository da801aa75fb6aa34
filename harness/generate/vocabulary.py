"""Reads three kinds of tokenizer file, recognised by their content, behind one interface.

The kinds are `tokenizer.json` of Hugging Face's tokenizers, SentencePiece's `tokenizer.model`, and
Llama 3's `tokenizer.model` (lines of a base64 token and its rank). To add a kind: write a class
with the methods of `Vocabulary`, and add a row to `_KINDS`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from harness.errors import HarnessError
from harness.text import read_file

MAX_FILE_BYTES = 128 << 20  # bytes; the largest known tokenizer.json has 33 MB


class Vocabulary(Protocol):
    """Converts text to token ids and back; `size` is one more than the largest id.

    `bos` and `eos` are the ids that the file itself names as the start and the end of a text;
    `end_tokens` has all that end a text or a turn. `prefix` has the ids that the file puts before a
    text, such as BOS.
    """

    size: int
    bos: int | None
    eos: int | None
    end_tokens: frozenset[int]
    prefix: tuple[int, ...]

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Return the ids of a text, without the prefix.

        With `parse_special`, the names of special tokens in the text become their ids, as in a
        rendered chat template.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids below `size`; special tokens have none, bad UTF-8 is U+FFFD."""
        ...

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text."""
        ...


# The special tokens that end a text or a turn in known model families.
_END_TOKENS = (
    "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>",
    "<|end|>", "</s>",
)  # fmt: skip


class _HuggingFace:
    def __init__(self, data: bytes, path: Path) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        self._tokenizer.no_truncation()  # a file may request it, and part of a prompt would vanish
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.size = max(ids) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        self.bos: int | None = None  # tokenizer_config.json names both
        self.eos: int | None = None
        self.end_tokens = frozenset(special[name] for name in _END_TOKENS if name in special)
        # A file may add tokens after a text, too; they would end a prompt before the model does.
        framed = self._tokenizer.encode("a")
        added_first = itertools.takewhile(
            itemgetter(1), zip(framed.ids, framed.special_tokens_mask, strict=True)
        )
        self.prefix: tuple[int, ...] = tuple(index for index, _ in added_first)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def id_of(self, token: str) -> int | None:
        index: int | None = self._tokenizer.token_to_id(token)
        return index


class _SentencePiece:
    def __init__(self, data: bytes, path: Path) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.size = self._processor.get_piece_size()
        bos, eos = self._processor.bos_id(), self._processor.eos_id()
        self.bos: int | None = bos if bos >= 0 else None
        self.eos: int | None = eos if eos >= 0 else None
        self.end_tokens = frozenset(() if self.eos is None else {self.eos})
        self.prefix: tuple[int, ...] = () if self.bos is None else (self.bos,)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        if not parse_special:
            return list(self._processor.encode(text))
        # SentencePiece reads "<s>" in a text as three characters, so the text is cut there.
        control = self._control_ids()
        parts = re.split(f"({'|'.join(map(re.escape, control))})", text) if control else [text]
        tokens: list[int] = []
        for part in filter(None, parts):
            tokens += [control[part]] if part in control else self._processor.encode(part)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if not self._processor.is_control(token)]
        return str(self._processor.decode(kept))

    def id_of(self, token: str) -> int | None:
        index = int(self._processor.piece_to_id(token))
        return None if self._processor.id_to_piece(index) != token else index

    def _control_ids(self) -> dict[str, int]:
        ids = filter(self._processor.is_control, range(self.size))
        return {self._processor.id_to_piece(index): index for index in ids}


class _Llama3:
    def __init__(self, data: bytes, path: Path) -> None:
        from pytorch_tokenizers import TiktokenTokenizer

        self._tokenizer = TiktokenTokenizer(str(path))
        self.size = self._tokenizer.n_words
        self.bos: int | None = self._tokenizer.bos_id
        self.eos: int | None = self._tokenizer.eos_id
        self.prefix: tuple[int, ...] = (self._tokenizer.bos_id,)
        special = self._tokenizer.special_tokens
        self._special = frozenset(special.values())
        self.end_tokens = frozenset(special[name] for name in _END_TOKENS if name in special)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        allowed = "all" if parse_special else None
        tokens: list[int] = self._tokenizer.encode(
            text, bos=False, eos=False, allowed_special=allowed
        )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self._special]
        text: bytes = self._tokenizer.model.decode_bytes(kept)
        return text.decode("utf-8", errors="replace")

    def id_of(self, token: str) -> int | None:
        try:
            number: int = self._tokenizer.model.encode_single_token(token)
        except KeyError:
            return None
        return number


# A pattern of a file's first bytes, the name of its kind, and the class that reads it.
_KINDS: tuple[tuple[str, str, Callable[[bytes, Path], Vocabulary]], ...] = (
    (r"\s*\{", "a Hugging Face tokenizer.json", _HuggingFace),
    (r"[A-Za-z0-9+/]+={0,2} \d+\r?\n", "a Llama 3 tokenizer.model", _Llama3),
    (r"\n", "a SentencePiece model", _SentencePiece),  # protobuf field 1, of wire type 2
)


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a tokenizer file; raises HarnessError when it is missing or of an unknown kind."""
    data = read_file(path, MAX_FILE_BYTES, "a file of a tokenizer")
    for pattern, kind, reader in _KINDS:
        if re.match(pattern.encode(), data):
            return _read_as(kind, reader, data, path)
    raise HarnessError(
        f"{path}: not a tokenizer: expected one of {', '.join(kind for _, kind, _ in _KINDS)}"
    )


def _read_as(
    kind: str, reader: Callable[[bytes, Path], Vocabulary], data: bytes, path: Path
) -> Vocabulary:
    try:
        vocabulary = reader(data, path)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a Rust library derives from BaseException
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HarnessError(f"{path}: looks like {kind}, but cannot be read: {reason}") from error
    if vocabulary.size < 1:
        raise HarnessError(f"{path}: {kind} without a single token")
    return vocabulary
