"""What a command is doing, on standard error, before it has been silent for two seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from harness.text import is_terminal, one_line, terminal_width

if TYPE_CHECKING:
    import pytest

_PATIENCE = 2.0  # seconds before a stage is shown, in a log
_PATIENCE_ON_TERMINAL = 0.75  # Python's start and imports have taken some before
_REDRAW = 0.25  # seconds between two drawings on a terminal
_BAR = "{desc}: {bar}| {n_fmt} of {total_fmt}, {elapsed}"
_BAR_COLUMNS = 35  # of the bar, the counts and the time
_REMINDER = 10.0  # seconds between two lines at most, elsewhere


class Progress:
    """Shows the stage of a command: a line that is redrawn on a terminal, lines elsewhere.

    Call it with each stage as it begins, and with how many of how many steps are done where that is
    known. The line vanishes before the command prints, and comes back once it has ended a line.
    """

    def __init__(self, stage: str, quiet: bool = False) -> None:
        self._start = self._began = time.monotonic()
        self._stage, self._done, self._total = stage, 0, 0
        self._shown = ""  # on a terminal
        self._next = self._start + _PATIENCE  # when to say it, elsewhere
        self._said = self._start  # when the last line was printed, elsewhere
        self._stream, self._is_terminal = sys.stderr, is_terminal(sys.stderr)
        self._hidden = self._quiet = quiet or sys.stderr is None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Begin a stage; `done` of `total` steps are behind it."""
        with self._lock:
            self._stage, self._done, self._total = one_line(stage), done, total
            self._began = time.monotonic()
            # Short stages that follow one another for long are said as well.
            self._next = min(self._began + _PATIENCE, self._said + _REMINDER)

    def hide(self) -> None:
        """Remove the line: the command prints."""
        with self._lock:
            self._clear()
            self._hidden = True

    def show(self) -> None:
        """Let the line come back: the command has ended a line of its own."""
        with self._lock:
            self._hidden = self._quiet

    def __enter__(self) -> Progress:
        if not self._quiet:
            if self._is_terminal:  # pytest captures standard error, but not another descriptor
                with suppress(OSError, ValueError):
                    copy = os.dup(sys.stderr.fileno())
                    encoding = sys.stderr.encoding
                    self._stream = os.fdopen(copy, "w", encoding=encoding, errors="replace")
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with suppress(OSError, ValueError):  # standard error is closed
            self.hide()
            if self._stream is not sys.stderr and self._is_terminal and not self._quiet:
                self._stream.close()

    def _draw(self) -> None:
        while not self._over.wait(_REDRAW):
            with self._lock:
                if self._hidden or self._over.is_set():
                    continue
                now = time.monotonic()
                try:
                    if not self._is_terminal:
                        self._say(now)
                    elif now - self._start > _PATIENCE_ON_TERMINAL:
                        self._redraw(now)
                except (OSError, ValueError):  # standard error is closed
                    return

    def _say(self, now: float) -> None:
        if now < self._next:
            return
        self._said, self._next = now, now + _REMINDER
        count = f" ({self._done} of {self._total} done)" if self._total else ""
        print(f"{now - self._start:6.1f} s  {self._stage}{count}", file=self._stream, flush=True)

    def _redraw(self, now: float) -> None:
        from tqdm import tqdm
        from tqdm.utils import disp_trim

        width = terminal_width(self._stream) - 1
        # A long stage is cut before the time, whose change is the sign of life.
        if self._total:
            stage = disp_trim(self._stage, max(0, width - _BAR_COLUMNS))
            text = tqdm.format_meter(
                self._done,
                self._total,
                now - self._start,
                width,
                stage,
                ascii=not _is_unicode(self._stream),
                bar_format=_BAR,
            )
        else:
            took = tqdm.format_interval(now - self._began)
            text = f"{disp_trim(self._stage, max(0, width - len(took) - 2))}  {took}"
        if text != self._shown:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
            self._shown = text

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = ""


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().startswith("utf")


def suite_plugin(progress: Progress) -> object:
    """Return a plugin of pytest that shows the running test, in the place of pytest's dots.

    A failure is printed at once. With `-v` or `-q`, pytest prints as it would without this.
    """
    import pytest

    class SuiteProgress:
        def __init__(self) -> None:
            self._reporter: Any = None
            self._done = self._total = 0

        def pytest_sessionstart(self, session: pytest.Session) -> None:
            if session.config.get_verbosity() == 0:
                self._reporter = session.config.pluginmanager.getplugin("terminalreporter")
                self._reporter.showfspath = False

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self._total = len(session.items)

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            progress(_test_name(nodeid), self._done, self._total)

        def pytest_runtest_logfinish(self) -> None:
            self._done += 1

        @pytest.hookimpl(wrapper=True)
        def pytest_report_teststatus(self) -> Generator[None, Any, Any]:
            category, letter, word = yield
            return category, letter if self._reporter is None else "", word

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if self._reporter is not None and report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)  # of a test that raised
                reason = one_line(
                    (crash.message if crash else report.longreprtext).partition("\n")[0]
                )
                self._reporter.write_line(f"FAILED {_test_name(report.nodeid)}: {reason}", red=True)

    return SuiteProgress()


def _test_name(nodeid: str) -> str:
    """Return a test's name without its file."""
    return one_line(nodeid.rpartition("::")[2].removeprefix("test_"))
