"""Tests of coremltools that cannot apply here, each with its reason, from `impossible.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from suites.operators.selection import Target

LIST = Path(__file__).with_name("impossible.toml")


@dataclass(frozen=True)
class Impossible:
    """A listed test function; `parameters` are patterns, one of which must match, or none.

    One that is `unsteady` may also pass.
    """

    test: str
    reason: str
    parameters: tuple[str, ...] = ()
    opsets: tuple[str, ...] = ()
    unsteady: bool = False

    def covers(self, target: Target) -> bool:
        """Whether a test is listed by this entry."""
        return (
            self.test == target.name
            and (not self.opsets or target.opset in self.opsets)
            and (
                not self.parameters
                or any(fnmatchcase(target.parameters, pattern) for pattern in self.parameters)
            )
        )


def read_impossible(path: Path = LIST) -> tuple[Impossible, ...]:
    """Return the list; ValueError for an entry without a test, a reason, or with something else."""
    entries = []
    for row in tomllib.loads(path.read_text()).get("impossible", []):
        unknown = row.keys() - {"test", "reason", "parameters", "opsets", "unsteady"}
        if unknown or not row.get("test") or not row.get("reason"):
            raise ValueError(f"{path.name}: an entry needs 'test' and 'reason': {row}")
        many = {name: tuple(row.get(name, ())) for name in ("parameters", "opsets")}
        unsteady = row.get("unsteady", False)
        entries.append(Impossible(row["test"], row["reason"], **many, unsteady=unsteady))
    return tuple(entries)


def unused(entries: Iterable[Impossible], targets: Iterable[Target]) -> list[Impossible]:
    """Return the entries that list no test that there is."""
    by_name: dict[str, list[Target]] = {}
    for target in targets:
        by_name.setdefault(target.name, []).append(target)
    return [
        entry
        for entry in entries
        if not any(entry.covers(target) for target in by_name.get(entry.test, ()))
    ]
