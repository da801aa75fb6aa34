"""Files and texts that are not trusted: read within limits, and printed without harm.

Input files are regular files of bounded size: a pipe blocks until somebody writes to it, and a
device may never end. JSON may spell half of a character (`"\\ud800"`), which no other file and no
library takes for text. A text is made safe and short enough for a terminal, for XML, for a table.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from harness.errors import HarnessError

# Control characters other than tab and line end, marks that turn the direction of writing, and
# halves of characters. The first two drive a terminal, and no encoding holds the last.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

ELLIPSIS = "…"
MAX_NESTING = 64  # of lists and objects; Python's own limit depends on the caller's depth
_TOO_DEEP = "it is nested too deeply"
_TOML_TEXT = re.compile(
    r"""\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+'|\#[^\n]*+""", re.DOTALL
)
_LONG_KEY = re.compile(
    rf"""(?<![\w-])(?>[\w-]++|["'])(?>[ \t]*+\.[ \t]*+(?>[\w-]++|["'])){{{MAX_NESTING}}}"""
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def require_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file; raise HarnessError for anything else at a path."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        found_kind = _KINDS.get(kind, "of another kind")
        raise HarnessError(f"{path}: cannot be read (it is {found_kind}, not a regular file)")
    return found


def unreadable(path: Path, error: OSError | ValueError) -> HarnessError:
    """Return the error for a file that the system does not read.

    ValueError is Python's for a path that holds NUL or half of a character.
    """
    return HarnessError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")


def not_a_folder(path: Path) -> HarnessError:
    """Return the error for a folder of an output that is a file."""
    return HarnessError(f"{path} is a file, not a folder: name another place")


def read_file(path: Path, max_bytes: int, kind: str) -> bytes:
    """Return a file's bytes; `kind` says in messages what has at most `max_bytes`.

    Raises HarnessError for anything but a regular file, for one that cannot be read, and for a
    larger one.
    """
    size = require_regular(path).st_size
    try:
        with path.open("rb") as file:
            # Python allocates what it is asked to read: no more than the file has, and one byte
            data = b"" if size > max_bytes else file.read(size + 1)
            # It grew, or it has no size, as in /proc: the rest comes in pieces as large as `data`
            while size < len(data) <= max_bytes:
                if not (more := file.read(min(len(data), max_bytes + 1 - len(data)))):
                    break
                data += more
    except OSError as error:
        raise unreadable(path, error) from None
    if max(size, len(data)) > max_bytes:
        raise HarnessError(f"{path}: larger than {max_bytes:,} bytes: not {kind}")
    return data


def resolved(path: Path) -> Path:
    """Return the absolute path without links; raise HarnessError for one that no file can have."""
    try:
        return path.resolve()
    except ValueError:  # NUL
        raise HarnessError(f"{path}: no file can have this name") from None


def require_outside(output: Path, *inputs: Path, replaces: bool = False) -> None:
    """Raise HarnessError for an output inside a folder that is read.

    With `replaces`, raise it also for a folder that holds an input and would be replaced.
    """
    place = resolved(output)
    for given in inputs:
        source = resolved(given)
        if place == source:
            continue  # whether it may be replaced depends on its kind
        if place.is_relative_to(source) and source.is_dir():
            raise HarnessError(f"{output}: lies inside {given}, which is read; name another place")
        if replaces and source.is_relative_to(place):
            raise HarnessError(f"{output}: holds {given}, which is read; name another place")


def parse_json(data: bytes | memoryview) -> Any:
    """Return the value of JSON in UTF-8.

    Raises ValueError, with a sentence, for anything else, for values that are nested too deeply,
    and for a text that holds half of a character.
    """
    text = bytes(data).decode("utf-8-sig")
    try:
        value = json.loads(text)
        require_shallow(value)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except UnicodeEncodeError:
        raise ValueError(r"a text holds half of a character, such as \ud800 alone") from None
    return value


def parse_toml(data: bytes) -> dict[str, Any]:
    """Return the tables of TOML in UTF-8; raises ValueError, with a sentence, as `parse_json`.

    Keys of many parts are looked for first: tomllib takes time by the square of their number.
    """
    text = data.decode("utf-8")
    if _LONG_KEY.search(_TOML_TEXT.sub(lambda found: found[0][:1].replace("#", ""), text)):
        raise ValueError(_TOO_DEEP)
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    require_shallow(tables)
    return tables


def require_shallow(value: Any) -> None:
    """Raise ValueError for values that are nested too deeply to be printed or compared."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for one in level
            if isinstance(one, list | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def content_digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the bytes of a file, or of the names and contents of a folder's."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    digest, size = hashlib.sha256(), 0
    for member in sorted(member for member in path.rglob("*") if member.is_file()):
        content, length = content_digest(member)
        digest.update(f"{member.relative_to(path).as_posix()!r} {content}\n".encode())
        size += length
    return digest.hexdigest(), size


def printable(text: str, keep: str = "") -> str:
    r"""Text with every character that is not printable spelled as an escape (`\x1b`).

    Control characters could drive a terminal, and XML cannot hold them nor lone surrogates.
    Characters in `keep` are left alone.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def harmless(text: str) -> str:
    r"""Text of several lines with every character that could drive a terminal as an escape.

    Unlike `printable`, it leaves all other characters alone, such as those that join emoji.
    """
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Printable text with every run of white space made one space."""
    return printable(" ".join(text.split()))


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, which has an `s` unless the count is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names with commas between them; of many, the first few and how many more."""
    more = [f"and {len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean 'NAME'? " with the known name that is nearest; "" if none is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def clip(text: str, width: int) -> str:
    """One line of at most `width` characters; what was cut shows as an ellipsis."""
    text = one_line(text)
    return text if len(text) <= width else text[: width - 1] + ELLIPSIS


PARAMS_NAMES = ("params.json", "config.json")
"""The names of a model's sizes in Meta's form and in Hugging Face's."""


def params_in(folder: Path) -> Path:
    """Return a folder's `params.json`, or else its `config.json`; raise HarnessError without."""
    for name in PARAMS_NAMES:
        if (found := folder / name).is_file():
            return found
    raise HarnessError(
        f"{folder}: it holds no {' and no '.join(PARAMS_NAMES)}: give the model's with --params, "
        "or as `params` in harness.toml"
    )


def params_beside(checkpoint: str | Path) -> Path:
    """Return the file of a checkpoint's sizes: in its folder, or beside its file.

    Raises HarnessError when nothing is at the path, and when there is no such file.
    """
    path = Path(checkpoint)
    if not path.exists():
        raise HarnessError(f"there is no checkpoint at {path}")
    return params_in(path if path.is_dir() else path.parent)


STREAM = ".jsonl"  # how the name of a result stream ends
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".safetensors.index.json")


def no_artifact(file: Path) -> str | None:
    """Return what a file is that is named like weights and lies beside a model's sizes, or None."""
    params = (name for name in PARAMS_NAMES if (file.parent / name).is_file())
    if file.name.endswith(_CHECKPOINTS) and file.is_file() and (name := next(params, None)):
        return _export_first(file, name, file.name)
    return None


def no_package(folder: Path, most: int) -> str:
    """Return what a folder is that is no package, by `most` of its names, and what to give."""
    with suppress(OSError):  # of a folder that cannot be listed
        names = sorted(path.name for path in islice(folder.iterdir(), most))
        params = next((name for name in PARAMS_NAMES if name in names), None)
        weights = next((name for name in names if name.endswith(_CHECKPOINTS)), None)
        if params and weights:
            return _export_first(folder, params, weights)
        if "extracted.json" in names:
            package = folder / "package_0" / "model.mlpackage"
            return f"what `harness extract` wrote: give one of its packages, such as {package}"
        if any(name.endswith(STREAM) for name in names):
            report = shlex.join(["harness", "report", str(folder)])
            return f"results of a run, not an artifact: `{report}` shows them"
    return (
        "not an .mlpackage (no Manifest.json); an artifact is a .pte, an .mlpackage or an exported "
        "folder (program.json)"
    )


def _export_first(checkpoint: Path, params: str, weights: str) -> str:
    words = ["harness", "export", "--checkpoint", str(checkpoint), "-o", "mine.pte"]
    return (
        f"a checkpoint ({params}, {weights}), not an artifact: export it first, with "
        f"`{shlex.join(words)}`, and give what that writes"
    )


_COLUMNS = 80  # of what does not tell its width


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal that can redraw a line."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def terminal_width(stream: TextIO) -> int:
    """Return the columns of a stream's terminal; COLUMNS overrules them. 80 if nothing tells."""
    try:
        given = int(os.environ.get("COLUMNS") or 0)
        return given if given > 0 else os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS
