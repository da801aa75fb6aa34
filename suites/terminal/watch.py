"""A command on a pseudo-terminal: what it wrote when, and what a person sees of it.

A silence is the time from the start to the first byte, or between two bytes. It is judged without
the time in which a thread of the command was ready and waited for a processor: on a machine
that other work loads, a command that shows a sign of life every second still needs longer for it.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import termios
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MAX_SILENCE = 2.0
"""Seconds that a command may take without a sign of life."""

_POLL = 0.1  # seconds between two looks at the processes
_ROWS = 50
_OF_OURS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CI", "GITHUB_ACTIONS")
_ESCAPE = re.compile(r"\x1b(?:\[([\d;?]*)([A-Za-z])|.)?|[^\x1b]", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Silence:
    """A time without a byte: all of it, what is judged, and the CPU time of the processes in it.

    `after` is the last line before it, and `start` when it began. All times are seconds.
    """

    start: float
    wall: float
    judged: float
    cpu: float
    after: str

    def __str__(self) -> str:
        moment = f"after '{self.after}'" if self.after else "before its first byte"
        return (
            f"{self.judged:.1f} s without a sign of life, {self.start:.1f} s after the start, "
            f"{moment} ({self.wall:.1f} s with waits for a processor, {self.cpu:.1f} s of CPU)"
        )


@dataclass(frozen=True)
class Watched:
    """A command that has ended: its words, its status, what it wrote, and its silences."""

    words: tuple[str, ...]
    status: int
    output: str
    columns: int
    silences: tuple[Silence, ...]

    @property
    def longest(self) -> Silence:
        """The silence that is judged the longest."""
        return max(self.silences, key=lambda silence: silence.judged)

    @property
    def screen(self) -> list[str]:
        """The lines that are on the terminal at the end, and those that have left it above."""
        return rendered(self.output, self.columns)

    @property
    def has_colours(self) -> bool:
        """Whether it wrote in colours."""
        return _COLOUR.search(self.output) is not None


@dataclass
class _Usage:
    """The CPU seconds of each process of a tree, and the seconds that each waited for one.

    Those of a process that has ended are its last ones that were seen.
    """

    cpu: dict[int, float] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)

    def look(self, process: psutil.Process) -> None:
        """Read those of a process and of all below it."""
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            return
        for one in family:
            try:
                times = one.cpu_times()
                self.cpu[one.pid] = times.user + times.system
                # The first thread alone: others may wait for each other's processors.
                waited = Path(f"/proc/{one.pid}/schedstat").read_text().split()[1]
                self.waited[one.pid] = int(waited) / 1e9
            except (psutil.Error, OSError):  # it has ended, or this is a Mac
                continue

    def copy(self) -> _Usage:
        return _Usage(dict(self.cpu), dict(self.waited))

    def since(self, before: _Usage) -> tuple[float, float]:
        """Return the CPU seconds since then, and the longest wait of one process."""
        cpu = sum(value - before.cpu.get(pid, 0.0) for pid, value in self.cpu.items())
        waits = (value - before.waited.get(pid, 0.0) for pid, value in self.waited.items())
        return cpu, max(waits, default=0.0)


def watch(
    words: Sequence[str],
    columns: int = 80,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seconds: float = 900,
) -> Watched:
    """Run a command whose standard streams are a pseudo-terminal of a width, until it ends.

    What it may be told of its own terminal by this process's variables is left out; `variables` are
    added. Raises TimeoutError for one that takes longer.
    """
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (_ROWS, columns))
    given = {name: value for name, value in os.environ.items() if name not in _OF_OURS}
    given |= {"TERM": "xterm-256color", **(variables or {})}
    start = time.monotonic()
    child = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=given,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        pieces, silences = [], []
        for piece, silence in _listen(child, ours, start, seconds):
            pieces.append(piece)
            silences.append(silence)
        status = child.wait()
    finally:
        child.kill()
        os.close(ours)
    output = b"".join(pieces).decode(errors="replace")
    return Watched(tuple(words), status, output, columns, tuple(silences))


def _listen(
    child: subprocess.Popen[bytes], terminal: int, start: float, seconds: float
) -> Iterator[tuple[bytes, Silence]]:
    """Yield each piece that a command writes, with the silence before it, the last one empty."""
    process, usage, quiet_since, text = psutil.Process(child.pid), _Usage(), start, ""
    before = usage.copy()
    while True:
        is_written = bool(select.select([terminal], [], [], _POLL)[0])
        usage.look(process)
        now = time.monotonic()
        if now - start > seconds:
            raise TimeoutError(
                f"a command takes longer than {seconds:.0f} s, after '{_last_line(text)}'"
            )
        if not is_written:
            continue
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # what Linux says when all descriptors of the other side are closed
            piece = b""
        cpu, waited = usage.since(before)
        wall = now - quiet_since
        after = _last_line(text)
        yield piece, Silence(quiet_since - start, wall, max(0.0, wall - waited), cpu, after)
        if not piece:
            return
        text, quiet_since, before = text[-500:] + piece.decode(errors="replace"), now, usage.copy()


def _last_line(text: str) -> str:
    lines = (line.strip() for line in re.split(r"[\r\n]", _plain(text)))
    return next((line for line in reversed(list(lines)) if line), "")[:80]


def _plain(text: str) -> str:
    return re.sub(r"\x1b(?:\[[\d;?]*[A-Za-z])?", "", text)


_PROGRESS = re.compile(r"(?:  |, )\d\d:\d\d(?::\d\d)?$")  # how a line of progress ends


def left_over(screen: Sequence[str]) -> list[str]:
    """Return the lines of progress that are still on a screen."""
    return [line for line in screen if _PROGRESS.search(line)]


def drawn(output: str) -> list[str]:
    """Return each line of progress that an output draws."""
    pieces = (_plain(piece).split("\n")[0] for piece in output.split("\r\x1b[K"))
    return [piece for piece in pieces if _PROGRESS.search(piece)]


def rendered(output: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows after an output, without the empty last ones.

    It knows what commands of ours may write: line ends, carriage returns, colours, and the
    sequence that clears the rest of a line. It raises ValueError for any other control sequence.
    """
    rows: list[list[str]] = [[]]
    row = column = 0
    for found in _ESCAPE.finditer(output):
        character, parameters, command = found[0], found[1], found[2]
        if command == "m":
            continue
        if command == "K" and parameters in ("", "0"):
            del rows[row][column:]
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            rows += [[]] if row == len(rows) else []
        elif character < " " or character == "\x7f":
            raise ValueError(f"{character!r} after {output[: found.start()][-60:]!r}")
        else:
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if column + width > columns:
                row, column = row + 1, 0
                rows += [[]] if row == len(rows) else []
            line = rows[row]
            line += [" "] * (column - len(line))
            line[column : column + width] = [character, *[""] * (width - 1)]
            column += width
    lines = ["".join(line).rstrip() for line in rows]
    while lines and not lines[-1]:
        lines.pop()
    return lines
