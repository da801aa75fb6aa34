"""Standard output whose failures are sentences: it is closed, or the disk behind it is full."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from harness.errors import HarnessError


@contextmanager
def checked_output(before_writing: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise HarnessError when standard output is closed, or cannot be written in the block.

    An OSError that leaves the block is therefore about another file. `before_writing` is called
    before each piece of text.
    """
    if sys.stdout is None:  # Python's value for one that was closed at the start
        raise HarnessError("standard output is closed; send it to a file, or to /dev/null")
    output = _Output(sys.stdout, before_writing)
    with redirect_stdout(output):
        yield
        output.flush()


def discard_output() -> None:
    """Send standard output to the null device: Python writes what is left when it exits."""
    with suppress(OSError, ValueError):  # a stand-in for standard output may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def hush_libraries() -> None:
    """Keep the warnings of other libraries from the terminal: users cannot act on them."""
    warnings.simplefilter("ignore")
    for name in ("coremltools", "torch", "torchao", "executorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Output:
    def __init__(self, stream: TextIO, before_writing: Callable[[], None]) -> None:
        self._stream = stream
        self._before_writing = before_writing

    def write(self, text: str) -> int:
        self._before_writing()
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
