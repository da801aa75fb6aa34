"""Mutations of structured files: JSON, TOML, JSON Lines, safetensors, ZIP archives, ML Programs.

Each takes a file's bytes and leaves a file of the same kind that is well formed but wrong. They
raise ValueError for bytes that are not of the kind.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tomllib
import zipfile
from typing import Any

from harness.artifact.delegate import REFERENCE_MAGIC
from harness.artifact.proto import new_model
from harness.suites.fuzz import of_bytes, of_programs

_MAX_NODES = 2000  # that a mutation chooses from
_NUMBERS = (0, 1, -1, 2, 1.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**400, float("nan"), float("inf"))
_TEXTS = ("", "a", "a" * 300, "\0", "\x1b[2J", "\ud800", "../x", "/etc/passwd", "é", "main", "[1]")
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [{}], {"": None})
VALUES: tuple[Any, ...] = (*_NUMBERS, *_TEXTS, *_OTHERS)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, repeat, rename or nest a value of JSON."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _changed(value, rng)
    return json.dumps(value).encode()


def of_reference(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON of a reference to a package, behind its four letters."""
    return data[: len(REFERENCE_MAGIC)] + of_json(data[len(REFERENCE_MAGIC) :], rng)


def _changed(value: Any, rng: random.Random) -> Any:
    root = [value]
    places: list[tuple[Any, Any]] = [(root, 0)]
    for holder, key in places:
        inner = holder[key]
        keys = inner if isinstance(inner, dict) else range(len(inner) if _is_list(inner) else 0)
        places += [(inner, key) for key in keys][: _MAX_NODES - len(places)]
    holder, key = rng.choice(places)
    other_holder, other_key = rng.choice(places)
    match rng.randrange(7):
        case 0 | 1:
            holder[key] = copy.copy(rng.choice(VALUES))
        case 2:
            holder[key] = copy.deepcopy(other_holder[other_key])
        case 3 if holder is not root:
            del holder[key]
        case 4 if isinstance(holder[key], list) and holder[key]:
            holder[key] = holder[key] * rng.choice((2, 3, 20))
        case 5 if isinstance(holder, dict):
            text = rng.choice([text for text in VALUES if isinstance(text, str)])
            holder[text or other_key if isinstance(other_key, str) else text] = holder.pop(key)
        case _:
            kind = rng.choice((lambda one: [one], lambda one: {"a": one}, lambda one: str(one)))
            holder[key] = kind(holder[key])
    return root[0]


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def of_toml(data: bytes, rng: random.Random) -> bytes:
    """Change a TOML file's values as those of JSON."""
    tables = tomllib.loads(data.decode())
    changed = json.loads(of_json(json.dumps(tables, default=str).encode(), rng))
    if not isinstance(changed, dict):
        raise ValueError("a TOML file is a table")
    return toml_bytes(changed)


def toml_bytes(tables: dict[str, Any]) -> bytes:
    """Return TOML of JSON's values; the tables in it are inline."""
    return "".join(f"{line}\n" for line in _pairs(tables)).encode()


def _pairs(table: dict[str, Any]) -> list[str]:
    """Return the lines of a table; of keys that TOML writes alike, the last counts."""
    return [f"{key} = {value}" for key, value in {_toml(k): _toml(table[k]) for k in table}.items()]


def _toml(value: Any) -> str:
    match value:
        case dict():
            return f"{{{', '.join(_pairs(value))}}}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case None:
            return "1979-05-27"
        case str():  # TOML has no half of a pair, and no DEL
            text = value.encode("utf-8", "ignore").decode()
            return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")
        case float():
            return repr(value)  # nan, inf, 1e+308
    return json.dumps(value)


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """Change, repeat, move or remove a line of JSON Lines."""
    lines = data.splitlines()
    index, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[index]
        case 1:
            lines.insert(other, lines[index])
        case 2:
            lines[index], lines[other] = lines[other], lines[index]
        case _:
            lines[index] = of_json(lines[index], rng)
    return b"\n".join(lines) + b"\n"


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file as JSON; its length follows."""
    (size,) = struct.unpack_from("<Q", data)
    header = of_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def of_zip(data: bytes, rng: random.Random) -> bytes:
    """Change one member of a ZIP archive, as `.pth` and `.npz` files are."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {info.filename: file.read(info) for info in file.infolist()[:100]}
    name = rng.choice(sorted(members))
    content = members.pop(name)
    renamed = name if rng.random() < 0.9 else rng.choice(("../x", "a", f"{name}x", ""))
    members[renamed] = rng.choice(of_bytes.MUTATIONS)(content, rng) if content else b"\0" * 100
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((0, 0, zipfile.ZIP_DEFLATED))) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def of_model(data: bytes, rng: random.Random) -> bytes:
    """Change fields of a `model.mlmodel`: of its program, or of its description."""
    model = new_model()
    try:
        model.ParseFromString(data)
    except Exception as error:
        raise ValueError(str(error)) from None
    try:
        return of_programs.mutated(model, rng)
    except (IndexError, KeyError) as error:
        raise ValueError(str(error)) from None
