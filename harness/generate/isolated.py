"""A tokenizer, and a chat template, in a child process with limits of time and memory.

Neither is trusted, and both are programs: a regular expression of a tokenizer may backtrack for
hours, a replacement may grow a word to gigabytes, and a template may loop. The child reads the file
and answers `encode`, `decode` and `id_of` as `Vocabulary` does, and renders templates.

The limits of memory hold on Linux; those of time everywhere.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness.child import Child, limit_memory, serve
from harness.errors import CallTimeoutError, ChildError, CrashError, HarnessError
from harness.generate.vocabulary import Vocabulary, read_vocabulary
from harness.text import require_regular

SECONDS = 20.0  # of the processor's time for one call
SECONDS_PER_MB = 5.0  # more, for each megabyte of file or text; usual tokenizers take 0.1 to 1
WAITING = 10  # times these seconds by the clock: the machine may be busy
MEMORY = 1 << 30  # bytes
MEMORY_PER_BYTE = 4  # more, for each byte of the file
MEMORY_PER_BYTE_OF_TEXT = 256  # a token has its id, its text, and its place in the text
MOST_TOKENS_PER_BYTE = 64  # a character may stand for a dozen, and a token is a byte at least
MOST_TEXT = 1 << 24  # characters of decoded tokens, or of a rendered template

_MODULE = "harness.generate.isolated"


class IsolatedVocabulary:
    """A `Vocabulary` that a child process reads from a file and computes."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer file; raises HarnessError, as all methods do, when a limit is passed."""
        self._path = path
        megabytes = require_regular(path).st_size / 1e6
        self._child = Child(_MODULE, str(path))
        facts = self._ask("reading it", megabytes, path=str(path))
        self.size: int = facts["size"]
        self.bos: int | None = facts["bos"]
        self.eos: int | None = facts["eos"]
        self.end_tokens: frozenset[int] = frozenset(facts["end_tokens"])
        self.prefix: tuple[int, ...] = tuple(facts["prefix"])

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Return the ids of a text; see `Vocabulary.encode`."""
        tokens: list[int] = self._ask(
            f"encoding {len(text):,} characters", len(text) / 1e6, text=text, special=parse_special
        )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids below `size`; see `Vocabulary.decode`."""
        megabytes = 8 * len(tokens) / 1e6
        return str(self._ask(f"decoding {len(tokens):,} tokens", megabytes, tokens=list(tokens)))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text."""
        index: int | None = self._ask("looking a token up", 0, token=token)
        return index

    def _ask(self, doing: str, megabytes: float, **request: object) -> Any:
        return _ask(self._child, request, f"{self._path}: {doing}", megabytes, _TOKENIZER)


_TOKENIZER = "its regular expressions, replacements or merges are too costly, or it is damaged"
_TEMPLATE = "it loops, or builds a huge text; run without --chat"


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool = True,
) -> str:
    """Render messages in a model's chat format.

    The template has the names of Hugging Face's `apply_chat_template`: `messages`,
    `add_generation_prompt`, the special tokens by name, `raise_exception`, `strftime_now`, and a
    `tojson` that does not escape for HTML. Raises HarnessError with the template's own error, and
    when it passes a limit.
    """
    what = "the tokenizer's chat template"
    names = {**special_tokens, "add_generation_prompt": add_generation_prompt}
    request = {"template": template, "messages": list(messages), "names": names}
    with Child(_MODULE, what) as child:
        return str(_ask(child, request, f"{what}: rendering it", 0, _TEMPLATE))


def _ask(child: Child, request: object, doing: str, megabytes: float, cause: str) -> Any:
    seconds = SECONDS + SECONDS_PER_MB * megabytes
    try:
        return child.ask(request, doing, WAITING * seconds, processor_seconds=seconds)
    except CallTimeoutError:
        raise HarnessError(f"{doing} takes over {seconds:.0f} s: {cause}") from None
    except CrashError as error:
        raise HarnessError(f"{doing} ended its process ({error.signal}): {cause}") from None
    except ChildError as error:
        raise HarnessError(f"{doing} failed ({error.kind}: {error.reason}): {cause}") from None


class _Server:
    """The child's side: one tokenizer file, or templates."""

    def __init__(self) -> None:
        self._vocabulary: Vocabulary | None = None

    def answer(self, request: dict[str, Any]) -> Any:
        match request:
            case {"path": path}:
                _limit(MEMORY_PER_BYTE * Path(path).stat().st_size)
                self._vocabulary = opened = read_vocabulary(Path(path))
                facts = {"size": opened.size, "bos": opened.bos, "eos": opened.eos}
                lists = {"end_tokens": [*opened.end_tokens], "prefix": [*opened.prefix]}
                return facts | lists
            case {"template": template, "messages": messages, "names": names}:
                _limit(0)
                return _bounded(_render(template, messages, names))
        assert self._vocabulary is not None, "it answers nothing before it has read a file"
        match request:
            case {"text": text, "special": special}:
                return self._encode(self._vocabulary, text, special)
            case {"tokens": tokens}:
                return _bounded(self._vocabulary.decode(tokens))
            case {"token": token}:
                return self._vocabulary.id_of(token)
        raise ValueError(request)

    def _encode(self, vocabulary: Vocabulary, text: str, special: bool) -> list[int]:
        size = len(text.encode())
        _limit(MEMORY_PER_BYTE_OF_TEXT * size)
        tokens = vocabulary.encode(text, special)
        if len(tokens) > MOST_TOKENS_PER_BYTE * (size + 1):
            raise ValueError(f"{len(tokens):,} tokens of {size:,} bytes")
        return tokens


def _limit(more: int) -> None:
    if sys.platform == "linux":
        limit_memory(MEMORY + more)


def _bounded(text: str) -> str:
    if len(text) > MOST_TEXT:
        raise ValueError(f"a text of {len(text):,} characters, of which {MOST_TEXT:,} are allowed")
    return text


def _render(template: str, messages: list[dict[str, str]], names: dict[str, Any]) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(messages=messages, **names)
    except MemoryError:
        raise
    except Exception as error:  # a template's expressions may raise any exception
        raise HarnessError(
            f"the tokenizer's chat template cannot be rendered: {error}; run without --chat"
        ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


if __name__ == "__main__":
    serve(_Server().answer)
