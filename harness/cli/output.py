"""Standard output whose failures are sentences: it is closed, or the disk behind it is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from harness.errors import HarnessError


@contextmanager
def checked_output() -> Iterator[None]:
    """Raise HarnessError when standard output is closed, or cannot be written in the block.

    An OSError that leaves the block is therefore about another file.
    """
    if sys.stdout is None:  # Python's value for one that was closed at the start
        raise HarnessError("standard output is closed; send it to a file, or to /dev/null")
    output = _Output(sys.stdout)
    with redirect_stdout(output):
        yield
        output.flush()


def discard_output() -> None:
    """Send standard output to the null device: Python writes what is left when it exits."""
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
        discard_output()
        raise HarnessError(f"standard output cannot be written ({error.strerror})") from None
