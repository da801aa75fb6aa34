"""Writes and reads one line of a result stream: strict JSON, validated against `schema.json`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.text import require_shallow

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

MAX_LINE_BYTES = 1 << 20
SCHEMA_FILE = Path(__file__).with_name("schema.json")


def format_line(record: Mapping[str, Any]) -> str:
    """Return the line of a record, without a newline, in ASCII, which every encoding preserves.

    Raises ValueError with a sentence when `parse_line` would not accept the record.
    """
    try:
        line = json.dumps(record, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"JSON cannot hold the record: {error}") from error
    parse_line(line.encode())
    return line


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the record of a line; raises ValueError with a sentence that describes the error."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        record: dict[str, Any] = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    require_shallow(record)
    _validate(record)
    return record


def _validate(record: Any) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(record))
    if error is not None:
        where = "".join(f"{part}: " for part in error.absolute_path)
        raise ValueError(f"{where}{error.message[:300]}")


@functools.cache
def _validator() -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; a repeated name is an error, because it is ambiguous."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object names the same key twice")
    return found


def _constant(spelling: str) -> NoReturn:
    raise ValueError(f"{spelling} is not JSON; a figure spells it as a string")


def _finite(spelling: str) -> float:
    """Read a float; 1e999 is valid JSON but cannot be compared."""
    value = float(spelling)
    if not math.isfinite(value):
        raise ValueError(f"{spelling[:40]} is out of range")
    return value
