"""What a command is doing, on standard error, once it has taken two seconds."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType

from harness.text import one_line

_PATIENCE = 2.0  # seconds before a stage is shown
_REDRAW = 0.25  # seconds between two drawings on a terminal
_BAR = "{desc}: {bar}| {n_fmt} of {total_fmt}, {elapsed}"
_REMINDER = 10.0  # seconds between two lines at most, elsewhere


class Progress:
    """Shows the stage of a command: a line that is redrawn on a terminal, lines elsewhere.

    Call it with each stage as it begins, and with how many of how many steps are done where that is
    known. The line vanishes before the command prints, and comes back with the next stage.
    """

    def __init__(self, stage: str, quiet: bool = False) -> None:
        self._start = self._began = time.monotonic()
        self._stage, self._done, self._total = stage, 0, 0
        self._shown = ""  # on a terminal
        self._next = self._start + _PATIENCE  # when to say it, elsewhere
        self._said = self._start  # when the last line was printed, elsewhere
        self._hidden = quiet
        self._quiet = quiet
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
            self._hidden = self._quiet

    def hide(self) -> None:
        """Remove the line until the next stage: the command prints."""
        with self._lock:
            self._clear()
            self._hidden = True

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self.hide()

    def _draw(self) -> None:
        while not self._over.wait(_REDRAW):
            with self._lock:
                if self._hidden or self._over.is_set():
                    continue
                now = time.monotonic()
                try:
                    if not sys.stderr.isatty():
                        self._say(now)
                    elif now - self._start > _PATIENCE:
                        self._redraw(now)
                except (OSError, ValueError):  # standard error is closed
                    return

    def _say(self, now: float) -> None:
        if now < self._next:
            return
        self._said, self._next = now, now + _REMINDER
        count = f" ({self._done} of {self._total} done)" if self._total else ""
        print(f"{now - self._start:6.1f} s  {self._stage}{count}", file=sys.stderr, flush=True)

    def _redraw(self, now: float) -> None:
        from tqdm import tqdm
        from tqdm.utils import disp_trim

        columns = shutil.get_terminal_size().columns - 1
        if self._total:
            seconds = now - self._start
            text = tqdm.format_meter(
                self._done, self._total, seconds, columns, self._stage, bar_format=_BAR
            )
        else:
            text = disp_trim(f"{self._stage}  {tqdm.format_interval(now - self._began)}", columns)
        if text != self._shown:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._shown = text

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = ""
