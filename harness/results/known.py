"""Known defects of the software under test: a case that fails because of one is `known`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path

from harness.errors import HarnessError
from harness.results.cases import Case

_PATTERNS = ("check", "fixture", "mode", "runtime")


@dataclass(frozen=True)
class KnownDefect:
    """A defect that is reported as `issue` and shows in the cases that all patterns match.

    Patterns are written as in a shell (`smollm2-*`); `reproduction` explains how to see the defect
    without this project.
    """

    issue: str
    reproduction: str = ""
    check: str = "*"
    fixture: str = "*"
    mode: str = "*"
    runtime: str = "*"

    def matches(self, case: Case) -> bool:
        """Return whether the defect shows in this case."""
        return all(fnmatchcase(getattr(case, key), getattr(self, key)) for key in _PATTERNS)


def judge_against_known(case: Case, known: Iterable[KnownDefect]) -> Case:
    """Return the case judged by the first defect that matches it, or unchanged if none does."""
    defect = next((defect for defect in known if defect.matches(case)), None)
    return case if defect is None else case.judged_against_known(defect.issue)


def read_known(path: Path) -> tuple[KnownDefect, ...]:
    """Read the tables `[[known]]` of a TOML file.

    Raises HarnessError when the file cannot be read, or a table lacks its issue or has another key.
    """
    allowed = {field.name for field in fields(KnownDefect)}
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8")).get("known", [])
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: the known defects cannot be read ({error})") from None
    for number, row in enumerate(rows, start=1):
        if "issue" not in row or not allowed >= row.keys():
            raise HarnessError(
                f"{path}: table {number} needs an issue, and may have "
                f"{', '.join(sorted(allowed))}; it has {', '.join(row) or 'nothing'}"
            )
    return tuple(KnownDefect(**row) for row in rows)
