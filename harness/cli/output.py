"""Standard output that says so when it cannot be written: a full disk behind it, or none at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from harness.errors import HarnessError


@contextmanager
def told_apart() -> Iterator[None]:
    """Commands print in this block, and no failure of that is taken for another file's.

    Raises HarnessError when standard output is closed or cannot be written.
    """
    if sys.stdout is None:  # what Python makes of a closed one
        raise HarnessError("standard output is closed; send it to a file, or to /dev/null")
    output = _Output(sys.stdout)
    with redirect_stdout(output):
        yield
        output.flush()


def discard() -> None:
    """Send what is still to be printed nowhere: Python tries it again when it ends."""
    with suppress(OSError, ValueError):  # a stand-in for standard output may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _named():
            return self._stream.write(text)

    def flush(self) -> None:
        with _named():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise HarnessError(f"standard output cannot be written ({error.strerror})") from None
