"""Files that are whole or not there: written under another name, then put in place."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from harness.errors import HarnessError


def temporary_name(path: Path, suffix: str) -> Path:
    """A name beside ``path`` that no other process will choose."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{suffix}")


def write_whole(path: Path, text: str) -> Path:
    """Write UTF-8 text to ``path`` at once; raises HarnessError when the file cannot be written."""
    temporary = temporary_name(path, ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path
