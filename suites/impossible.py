"""Tests of other projects that cannot apply here: each suite lists its own in `impossible.toml`.

A listed test is expected to fail. One that passes is a failure, so that its entry goes; so is an
entry for a test that does not exist.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

NO_OPSET = "-"


@dataclass(frozen=True)
class Target:
    """The identity of a test.

    It has a file ("iOS17/test_conv.py"), a function ("TestConv::test_x"), its parameters as pytest
    writes them, and an opset, "-" when the test has none.
    """

    file: str
    function: str
    parameters: str = ""
    opset: str = NO_OPSET

    @property
    def name(self) -> str:
        """File and function: "iOS17/test_conv.py::TestConv::test_x"."""
        return f"{self.file}::{self.function}"

    def __str__(self) -> str:
        return f"{self.name}[{self.parameters}]" if self.parameters else self.name


@dataclass(frozen=True)
class Impossible:
    """An entry of the list: a test function, and why it cannot apply.

    When there are `parameters`, which are patterns, one of them must match; when there are
    `opsets`, the test's must be among them. An `unsteady` test may also pass.
    """

    test: str
    reason: str
    parameters: tuple[str, ...] = ()
    opsets: tuple[str, ...] = ()
    unsteady: bool = False

    def covers(self, target: Target) -> bool:
        """Return whether this entry lists a test."""
        return (
            self.test == target.name
            and (not self.opsets or target.opset in self.opsets)
            and (
                not self.parameters
                or any(fnmatchcase(target.parameters, pattern) for pattern in self.parameters)
            )
        )


_LISTED = pytest.StashKey[Impossible]()


def read_impossible(path: Path) -> tuple[Impossible, ...]:
    """Return the entries of a list.

    Raises ValueError for an entry that lacks its test or its reason, or has an unknown key.
    """
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
    """Return the entries that list no existing test."""
    by_name: dict[str, list[Target]] = {}
    for target in targets:
        by_name.setdefault(target.name, []).append(target)
    return [
        entry
        for entry in entries
        if not any(entry.covers(target) for target in by_name.get(entry.test, ()))
    ]


def mark_listed(targets: Mapping[pytest.Item, Target], path: Path, unsteady: bool = False) -> None:
    """Let every collected test that a list names know its entry; with `unsteady`, all may pass.

    Raises pytest.UsageError for an entry that lists nothing in the files that were collected.
    """
    files = {target.file for target in targets.values()}
    entries = [entry for entry in read_impossible(path) if entry.test.partition("::")[0] in files]
    if stale := unused(entries, targets.values()):
        names = ", ".join(entry.test for entry in stale)
        raise pytest.UsageError(f"impossible.toml lists tests that are not there: {names}")
    by_test: dict[str, list[Impossible]] = {}
    for entry in entries:
        by_test.setdefault(entry.test, []).append(entry)
    for item, target in targets.items():
        for entry in by_test.get(target.name, ()):
            if entry.covers(target):
                item.stash[_LISTED] = replace(entry, unsteady=unsteady or entry.unsteady)


def entry_of(item: pytest.Item) -> Impossible | None:
    """Return the entry that lists a collected test, None when it is not listed."""
    return item.stash.get(_LISTED, None)


def judge_listed(report: pytest.TestReport, listed: Impossible) -> None:
    """Turn the failure of a listed test into an expected one, and its pass into a failure.

    An unsteady one may pass.
    """
    if report.failed:
        report.outcome, report.wasxfail = "skipped", listed.reason
    elif report.passed and not listed.unsteady:
        report.outcome = "failed"
        report.longrepr = f"listed as impossible ({listed.reason}), but it passes: remove the entry"
