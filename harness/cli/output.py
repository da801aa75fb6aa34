"""Standard output: its failures are sentences, and no name in an artifact drives the terminal."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from harness.cli.progress import Progress
from harness.errors import HarnessError
from harness.text import harmless, is_terminal, terminal_width

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

INTERRUPTED = 130  # the status that a shell reports for a process that Ctrl-C ended
_MIN_COLUMN = 20
TERMINATED = 143  # that of one that SIGTERM ended
_AGAIN_SECONDS = 0.05  # until a signal that a finalizer swallowed is sent again


@contextmanager
def interruptible(signals: list[int]) -> Iterator[None]:
    """Let SIGTERM interrupt the block, unless our caller handles or ignores it, as Ctrl-C does.

    What a command has begun to write is removed. SIGTERM is added to `signals`. Python drops an
    interrupt that lands in a finalizer: both signals are then sent again until the block ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    lost: list[threading.Timer] = []
    takes_sigterm = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    before = sys.unraisablehook

    def terminate(received: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        signals.append(received)
        raise KeyboardInterrupt

    def send_again(dropped: UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        number = signal.SIGINT
        if signals:
            number = signal.SIGTERM
            signal.signal(number, terminate)
        for timer in lost:
            timer.cancel()
        lost.append(threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)))
        lost[-1].daemon = True
        lost[-1].start()

    sys.unraisablehook = send_again
    if takes_sigterm:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
        if lost:  # the finalizer was the last that ran
            raise KeyboardInterrupt
    finally:
        for timer in lost:
            timer.cancel()
        sys.unraisablehook = before
        if takes_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def checked_output(progress: Progress, *, exactly: bool = False) -> Iterator[None]:
    """Raise HarnessError when standard output is closed, or cannot be written in the block.

    An OSError that leaves the block is therefore about another file. The line of progress is hidden
    while a line of standard output or standard error is begun and not ended. Unless it is written
    `exactly`, control characters become escapes: all that a command prints may hold names of an
    artifact.
    """
    if sys.stdout is None:  # Python's value for one that was closed at the start
        raise HarnessError("standard output is closed; send it to a file, or to /dev/null")
    output = _Output(sys.stdout, progress, exactly)
    with redirect_stdout(output), redirect_stderr(_beside(progress)):
        yield
        output.flush()


def _beside(progress: Progress) -> TextIO | None:
    """Return standard error; what is written to a terminal takes turns with the line of progress.

    A log's lines of progress are whole lines, which nothing breaks.
    """
    if not is_terminal(sys.stderr):
        return sys.stderr
    return cast(TextIO, _Output(sys.stderr, progress, exactly=True))


def print_exactly(text: str) -> None:
    """Print a text with its control characters, such as the colours of a table of ours."""
    if isinstance(sys.stdout, _Output):
        sys.stdout.write_exactly(text)
    else:
        sys.stdout.write(text)


# Words that begin a line, or follow its indent: the colour of the terminal that each has.
_PAINTED = {
    32: ("pass", "PASSED", "better"),
    31: ("fail", "error", "crash", "timeout", "FAILED", "regression", "changed"),
    33: ("warn", "known", "UNDECIDED", "inconclusive"),
}
_BEGINS = re.compile(
    rf"^( *)({'|'.join(word for words in _PAINTED.values() for word in words)})\b", re.M
)

_LABEL = re.compile(r" *\S+(?: \S+)? {2,}")  # as "pass  " and "      found by  "


def print_painted(text: str) -> None:
    """Print lines, with the outcomes and verdicts that begin them in colours where these show.

    A terminal gets no line that is longer than it is wide, unless a word is.
    """
    text = harmless(text)
    if sys.stdout.isatty():
        from harness.report import wants_colours

        width = terminal_width(sys.stdout)
        text = "".join(f"{_wrapped(line, width)}\n" for line in text.splitlines())
        if wants_colours(sys.stdout):
            colours = {word: colour for colour, words in _PAINTED.items() for word in words}
            text = _BEGINS.sub(lambda m: f"{m[1]}\x1b[{colours[m[2]]}m{m[2]}\x1b[0m", text)
    print_exactly(text)


def print_fitted(rows: Sequence[Sequence[str]], headers: Sequence[str], column: int) -> None:
    """Print a table, one column of which wraps on a terminal; a pipe gets a line for each row."""
    from tabulate import tabulate

    from harness.report import GAP, HEADER_PADDING

    sizes: list[int | None] | None = None
    if sys.stdout.isatty():
        widths = [
            max(len(header) + HEADER_PADDING, *(len(row[index]) for row in rows)) + GAP
            for index, header in enumerate(headers)
        ]
        sizes = [None] * len(headers)
        room = terminal_width(sys.stdout) - sum(widths) + widths[column]
        sizes[column] = max(_MIN_COLUMN, room)
    print(tabulate(rows, headers, maxcolwidths=sizes))


def _wrapped(line: str, width: int) -> str:
    """Return a line in pieces of a width; the later ones begin below what follows its label."""
    label, start = _LABEL.match(line), len(line) - len(line.lstrip()) + 6
    indent = " " * (label.end() if label else start)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


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
    def __init__(self, stream: TextIO, progress: Progress, exactly: bool) -> None:
        self._stream = stream
        self._progress = progress
        self._exactly = exactly

    def write(self, text: str) -> int:
        return self.write_exactly(text if self._exactly else harmless(text))

    def write_exactly(self, text: str) -> int:
        self._progress.hide()
        if not text.isascii():  # a C locale has no é
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        with _named():
            count = self._stream.write(text)
        if text.endswith("\n"):
            self._progress.show()
        return count

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
