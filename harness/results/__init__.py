"""What a run records: figures, findings and cases, in a stream (JSON Lines). No torch.

A stream is written line by line, and read back whole or refused with a sentence.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from harness.errors import HarnessError
from harness.files import PARTIAL, lock, remove_unlocked, token, unfinished
from harness.results.cases import (
    MAX_FINDINGS,
    NOT_APPLICABLE,
    OUTCOMES,
    Case,
    Fact,
    RecordedFinding,
)
from harness.results.figures import Figure, Histogram, OperationError, Profile
from harness.results.findings import Finding, case_from_findings, reason_of
from harness.results.known import KnownDefect, read_known
from harness.results.lines import MAX_LINE_BYTES, format_line, parse_line
from harness.results.machine import Header, conditions
from harness.text import STREAM, not_a_folder

__all__ = [
    "NOT_APPLICABLE",
    "OUTCOMES",
    "Case",
    "Fact",
    "Figure",
    "Finding",
    "Footer",
    "Header",
    "Histogram",
    "InvalidStream",
    "KnownDefect",
    "MissingFooter",
    "OperationError",
    "Profile",
    "RecordedFinding",
    "Run",
    "Stream",
    "Writer",
    "case_from_findings",
    "read_known",
    "read_run",
    "reason_of",
]

MAX_FILE_BYTES = 256 << 20


class InvalidStream(HarnessError):
    """A result stream that cannot be trusted: the message names the file, line and error."""


class MissingFooter(InvalidStream):
    """A result stream that ends before its footer: the run did not finish."""


@dataclass(frozen=True)
class Footer:
    """The totals of a run's cases; a stream without a footer is not a result."""

    counts: Mapping[str, int]
    comparisons: int
    seconds: float
    passed: bool
    warnings: int = 0
    conditions: Mapping[str, str | int] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Iterable[Case], seconds: float) -> Footer:
        """Return the footer of these cases.

        A run passes when no case has an outcome that fails it, and one that passes or is `known`
        compared something.
        """
        cases = tuple(cases)
        found = Counter(case.outcome for case in cases)
        comparisons = sum(case.comparisons for case in cases)
        compared = any(case.passes and case.comparisons for case in cases)
        return cls(
            counts={name: found[name] for name in OUTCOMES},
            comparisons=comparisons,
            seconds=seconds,
            passed=compared and all(case.passes for case in cases),
            warnings=sum(f.warning for case in cases for f in case.findings[:MAX_FINDINGS]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the footer as a JSON object."""
        return {"type": "footer", "counts": dict(self.counts)} | {
            "comparisons": self.comparisons,
            "seconds": self.seconds,
            "passed": self.passed,
            **({"warnings": self.warnings} if self.warnings else {}),
            **({"conditions": dict(self.conditions)} if self.conditions else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Footer:
        """Read the footer that `to_json` wrote; `data` has been validated against the schema."""
        return cls(**{name: value for name, value in data.items() if name != "type"})


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its stream."""

    header: Header
    cases: tuple[Case, ...]
    footer: Footer


class Stream:
    """The records of one run, each a line that `write` receives: header, cases, footer."""

    def __init__(self, header: Header, write: Callable[[str], object]) -> None:
        self._write_line = write
        self._cases: dict[str, Case] = {}
        self._start = time.monotonic()
        self._write(header.to_json())

    def add(self, case: Case) -> None:
        """Append a case; raises HarnessError when its id has been written before."""
        if case.id in self._cases:
            raise HarnessError(f"Case {case.id} ran twice: give each case of a run its own name")
        self._write(case.to_json())
        self._cases[case.id] = case

    def finish(self) -> Footer:
        """Write the footer and return it."""
        footer = Footer.of(self._cases.values(), round(time.monotonic() - self._start, 3))
        footer = replace(footer, conditions=conditions())
        self._write(footer.to_json())
        return footer

    def _write(self, record: dict[str, Any]) -> None:
        try:
            line = format_line(record)
        except ValueError as error:
            what = record.get("id", record["type"])
            raise HarnessError(f"{what} cannot be recorded: {error}") from error
        self._write_line(line)


class Writer(Stream):
    """A context manager that writes the stream of one run to a file; `echo` receives each line.

    Lines go to `PATH.XXXXXXXX.partial`; each is flushed. Leaving the block writes the footer and
    moves the file to `path`. An exception or a kill leaves the partial stream in its place until
    the next run starts to write to `path`.
    """

    def __init__(
        self, path: Path, header: Header, echo: Callable[[str], object] | None = None
    ) -> None:
        self.path = Path(path)
        self._echo = echo
        try:
            self.partial = self.path.with_name(f"{self.path.name}.{token()}{PARTIAL}")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for left in unfinished(self.path.parent, self.path.name):
                if not _has_footer(left):  # a whole result that could not be put in place stays
                    remove_unlocked(left)
            self._file: IO[str] = self.partial.open("x", encoding="utf-8", newline="\n")
            lock(self._file.fileno())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            if isinstance(error, FileExistsError):
                raise not_a_folder(self.path.parent) from None
            reason = getattr(error, "strerror", None) or error
            raise HarnessError(f"{path} cannot be written: {reason}") from error
        try:
            super().__init__(header, self._write_to_file)
        except BaseException:  # without its header, the file is of no use
            self._file.close()
            self.partial.unlink(missing_ok=True)
            raise

    def finish(self) -> Footer:
        """Write the footer and move the stream to `path`; raises HarnessError on failure."""
        footer = super().finish()
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self.partial.replace(self.path)
        except OSError as error:
            raise HarnessError(
                f"{self.path} cannot be written: {error.strerror or error}; the results are in"
                f" {self.partial}"
            ) from error
        return footer

    def abandon(self) -> None:
        """Stop without a footer; the partial stream keeps its own name."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file.closed:  # `finish` has been called
            return
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def _write_to_file(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise HarnessError(f"{self.partial} cannot be written: {error.strerror}") from error
        if self._echo:
            self._echo(line)


def _has_footer(path: Path) -> bool:
    """Return whether a stream's last line is a footer."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LINE_BYTES))
            lines = file.read().splitlines()
        return bool(lines) and parse_line(lines[-1])["type"] == "footer"
    except (OSError, ValueError):
        return False


def stream_of(path: Path) -> Path:
    """Return the one stream of a folder that a run wrote; any other path as it is.

    Raises InvalidStream, with their names, when a folder holds several or none.
    """
    try:
        if not path.is_dir():
            return path
    except OSError:  # no file can have this name
        return path
    found = sorted(each for each in path.glob(f"*{STREAM}") if each.is_file())
    if len(found) != 1:
        names = f": {', '.join(each.name for each in found)}; give one" if found else ""
        raise InvalidStream(f"{path} holds {len(found)} result files (*{STREAM}){names}")
    return found[0]


def read_run(path: str | Path) -> Run:
    """Read a finished run, of its stream or of the folder that holds no other stream.

    Raises InvalidStream (MissingFooter for an unfinished run) unless the file is a regular file of
    at most 256 MiB, every line is valid, the header is first, ids are unique, and the footer is
    last and agrees with the cases.
    """
    path = stream_of(Path(path))
    header: Header | None = None
    footer: Footer | None = None
    cases: dict[str, Case] = {}
    for line, record in _records(path):
        where = f"{path}, line {line}"
        if (record["type"] == "header") != (header is None):
            raise InvalidStream(f"{where}: a stream starts with its header and has only one")
        if footer is not None:
            raise InvalidStream(f"{where}: the footer must be the last line")
        try:
            if record["type"] == "header":
                header = Header.from_json(record)
            elif record["type"] == "footer":
                footer = Footer.from_json(record)
            else:
                case = Case.from_json(record)
                if case.id in cases:
                    raise HarnessError(f"case {case.id} is there twice")
                cases[case.id] = case
        except HarnessError as error:
            raise InvalidStream(f"{where}: {error}") from error
    if header is None:
        raise InvalidStream(f"{path} is empty: it is not a result stream")
    if footer is None:
        raise MissingFooter(
            f"{path} has no footer after {len(cases)} cases: its run did not finish, so it is not a"
            " result; run it again"
        )
    run = Run(header, tuple(cases.values()), footer)
    _check_footer(path, run)
    return run


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the record of each line."""
    for number, line in enumerate(_lines(path), start=1):
        try:
            yield number, parse_line(line.rstrip(b"\r\n"))
        except ValueError as error:
            hint = "; give a result stream: JSON Lines, as a run writes them" if number == 1 else ""
            if number == 1 and line.strip() == b"{":
                hint += ", and not a JSON document such as a comparison's gate.json"
            raise InvalidStream(f"{path}, line {number}: {error}{hint}") from error


def _lines(path: Path) -> Iterator[bytes]:
    try:
        # Reading a pipe might never end.
        if path.exists() and not path.is_file():
            raise InvalidStream(f"{path} is not a regular file: give the JSON Lines file of a run")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise InvalidStream(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: no run is")
            yield from file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InvalidStream(f"{path} cannot be read: {reason}") from error


def _check_footer(path: Path, run: Run) -> None:
    expected = Footer.of(run.cases, run.footer.seconds)
    for name in ("counts", "comparisons", "passed", "warnings"):
        value, own = getattr(run.footer, name), getattr(expected, name)
        if value != own:
            raise InvalidStream(
                f"{path}: the footer says {name} {value}, its cases say {own}: the stream was"
                " changed or cut after the run"
            )
