"""The one table of faults: each is a row beside the function that makes it, in an `of_*` module.

To add a fault, write a function that breaks something, and put `@fault(...)` above it. The row
names the broken part, and by check the sentence that the check must say; a check that fails for
another reason has not found the fault. `test_faults` makes a mutant for each mode and kind, and
`nox -s mutants` prints the table.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

SINGLE, MULTI = ("single",), ("multifunction",)
BOTH = SINGLE + MULTI
PTE, FOLDER = (".pte",), ("folder",)
KINDS = PTE + FOLDER
ANY = ("-",)  # the only mode, or kind, of what has none

WRONG = r"(prefill|decode|caches) error is \S+ \(<="  # what parity says of wrong numbers
NUMBERS = {"parity": WRONG}
ROOMS = (
    *("metadata", "references", "package files", "program", "tables of a .pte", "weights"),
    *("quantization", "sharing", "graph", "constants", "compile specs", "results", "time"),
    *("reports", "exporter", "runner"),
)

Complaints = Mapping[str, tuple[str, ...]]
"""What a judge found wrong: each check that does not pass, with all of its failures."""
M = TypeVar("M", bound=Callable[..., Any])


@dataclass(frozen=True)
class Mutant:
    """One mutant: what to break, in which mode and kind, and where to write it.

    Without `mutate` it is the control, which no check may complain about.
    """

    mutate: Callable[..., object] | None
    mode: str
    kind: str
    folder: Path


class Judge(Protocol):
    """Makes a mutant and judges it by `checks`; it may run more checks than these."""

    __name__: str

    def __call__(self, mutant: Mutant, checks: Collection[str]) -> Complaints:
        """Return the complaints."""


@dataclass(frozen=True)
class Fault:
    """A row: `by` has the sentence, a regular expression, that each of these checks must say.

    With `alone`, no other check that the judge runs may complain. `gate` is what a line of the gate
    against the sound artifact must say. `reports` are the failures and field reports of this kind.
    `tested` are the kinds that `nox -s tests` has time for, too. `in_folder` is `by` of a folder,
    where that differs. `has_control` is false where the judge compares each mutant with its own
    sound spelling, so that rows share no control.
    """

    name: str
    room: str
    by: Mapping[str, str]
    mutate: Callable[..., object]
    judge: Judge
    modes: tuple[str, ...] = BOTH
    kinds: tuple[str, ...] = KINDS
    gate: str = ""
    reports: tuple[str, ...] = ()
    alone: bool = False
    in_folder: Mapping[str, str] | None = None
    tested: tuple[str, ...] = PTE
    has_control: bool = True

    def sentences(self, kind: str) -> Mapping[str, str]:
        """Return the sentences that the checks must say about a mutant of a kind."""
        return self.in_folder if self.in_folder and kind in FOLDER else self.by


_ROWS: dict[str, Fault] = {}


def all_faults() -> dict[str, Fault]:
    """Return the table, by name; the first call imports the modules that have the rows."""
    package = __name__.rpartition(".")[0]
    folder = Path(__file__).parent
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name.startswith("of_"):
            importlib.import_module(f"{package}.{module.name}")
    return _ROWS


def fault(
    name: str, by: Mapping[str, str], *reports: str, room: str, judge: Judge, **more: Any
) -> Callable[[M], M]:
    """Return a decorator that adds a row for a mutation and returns the mutation."""
    assert name not in _ROWS, f"two faults are called '{name}'"
    assert re.fullmatch(r"[^\[\],]+", name), f"'{name}' cannot be the name of a case"
    assert room in ROOMS, f"'{name}' is of an unknown room, {room}"

    def add(mutate: M) -> M:
        _ROWS[name] = Fault(name, room, by, mutate, judge, reports=reports, **more)
        return mutate

    return add
