"""The defects of `known.toml`, and which of them a case belongs to."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from harness.results import Case

_KNOWN = Path(__file__).parent / "known.toml"


@cache
def _rows() -> list[dict[str, Any]]:
    return list(tomllib.loads(_KNOWN.read_text(encoding="utf-8"))["known"])


def known_issue(case: Case) -> str | None:
    """Return the known defect that a case belongs to."""
    for row in _rows():
        patterns = {key: row.get(key, "*") for key in ("check", "fixture", "mode", "runtime")}
        if all(fnmatch(getattr(case, key), pattern) for key, pattern in patterns.items()):
            return str(row["issue"])
    return None
