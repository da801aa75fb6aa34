"""The table of findings: what each code means, what to do about it, and what it keeps from view.

`findings.toml` beside this file is the table; its head explains the columns. `harness findings`
prints it, and `docs/findings.md` is made of it.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.results import (
    NOT_APPLICABLE,
    Case,
    KnownDefect,
    RecordedFinding,
    read_known,
    reason_of,
)
from harness.runtimes import REFERENCE, runtime_row

ANY_CHECK = "any"
SECTIONS = {
    "A": "Artifact, packages and programs",
    "M": "Metadata and the runner's contract",
    "S": "Sharing and sizes",
    "W": "Weights and tables",
    "N": "Numbers",
    "H": "Hazards of converters and devices",
    "O": "Options of exporters",
}
SEVERITIES = ("failure", "warning")
_OF_OTHERS = (ANY_CHECK, "agreement", "bisect", "options", "sizes")  # `check` cannot run them
BECAUSE = "because of "  # how the reason of a case begins that is skipped for its cause
_MAX_PAIRS = 100_000  # of places that are compared
_PLACE = re.compile(r"\b(method|delegate|package|function|input|output|state) ('[^']*'|\d+)")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    `check` is the check that finds it, `sentence` what is wrong, `remedy` what to do, `source` the
    failure or report that it belongs to. `versions` is the range of a tool's versions where only
    some have it. `breaks` are the parts that nobody can judge before it is repaired; the finding
    means something only if the parts of `rests_on` are sound. With `once`, all findings of the code
    in a case are one. With `names_part`, the evidence names the damaged part: equal evidence of
    another check is the same fault.
    """

    code: str
    check: str
    severity: str
    sentence: str
    remedy: str
    source: str
    versions: str = ""
    breaks: tuple[str, ...] = ()
    rests_on: tuple[str, ...] = ()
    once: bool = False
    names_part: bool = False


@cache
def rows() -> Mapping[str, Row]:
    """Return the rows of the table by code, in its order."""
    table = tomllib.loads((files("harness.checks") / "findings.toml").read_text("utf-8"))
    made = {code: _row(code, values) for code, values in table.items()}
    return {code: row for section in SECTIONS for code, row in made.items() if code[0] == section}


def check_names() -> list[str]:
    """Return the names of the checks of `harness check` in order, without importing the checks."""
    return sorted({row.check for row in rows().values()} - set(_OF_OTHERS))


def _row(code: str, values: Mapping[str, Any]) -> Row:
    parts = {name: tuple(values.get(name, ())) for name in ("breaks", "rests_on")}
    return Row(code, **{**values, **parts})


def explained(finding: RecordedFinding) -> RecordedFinding:
    """Return a finding with what its row says; itself when it has no row."""
    row = rows().get(finding.code)
    return replace(finding, meaning=row.sentence, remedy=row.remedy) if row else finding


def is_reported_once(code: str) -> bool:
    """Return whether all findings of a code in one case are one, whatever their evidence."""
    return code in rows() and rows()[code].once


def read_known_defects(path: Path) -> tuple[KnownDefect, ...]:
    """Read a file of known defects; one with a code shows in the check that finds this code.

    Raises HarnessError when the file cannot be read, or a code is not one of the defect's check.
    """
    return tuple(_of_its_check(path, defect) for defect in read_known(path))


def _of_its_check(path: Path, defect: KnownDefect) -> KnownDefect:
    if not (code := defect.code):
        return defect
    where = f"{path}: {defect.issue}"
    if (row := rows().get(code)) is None:
        raise HarnessError(f"{where}: no finding has the code '{code}': see `harness findings`")
    if row.check != ANY_CHECK and fnmatchcase(row.check, defect.check):
        return replace(defect, check=row.check)
    if row.check != ANY_CHECK:
        raise HarnessError(f"{where}: {code} is a finding of {row.check}, not of {defect.check}")
    if defect.check == "*":
        raise HarnessError(f"{where}: many checks find {code}: name the one that does, as `check`")
    return defect


_EXECUTED = "numbers"  # the part that a runtime breaks for itself alone


@dataclass(frozen=True)
class Cause:
    """What a check found, and on which runtime."""

    check: str
    runtime: str
    finding: RecordedFinding

    def explains_numbers_of(self, runtime: str) -> bool:
        """Return whether numbers of a runtime are wrong because of this one.

        A case without a runtime executes on our own executor.
        """
        if self.runtime in (NOT_APPLICABLE, runtime):
            return True
        ours = runtime_row(REFERENCE).kind
        return runtime == NOT_APPLICABLE and runtime_row(self.runtime).kind == ours


def causes_only(cases: Iterable[Case]) -> Iterator[Case]:
    """Yield cases without the findings that an earlier finding explains.

    A finding explains a later one that rests on a part that it breaks, unless their places exclude
    each other. A finding on one runtime does not explain the numbers of another runtime. A finding
    whose evidence names the damaged part explains one of equal place and evidence. A case whose
    failures are all explained is skipped because of the first of their causes. A case that passes,
    a known defect and a warning explain nothing.
    """
    causes = _Causes()
    for case in cases:
        if case.passes:
            yield case
            continue
        own: list[RecordedFinding] = []
        others: list[Cause] = []
        for finding in case.findings:
            cause = None if finding.warning else causes.of(finding, case.runtime)
            if cause is None:
                own.append(finding)
            else:
                others.append(cause)
            if cause is None and not finding.warning:
                causes.add(Cause(case.check, case.runtime, finding))
        yield _without(case, tuple(own), others) if others else case


class _Causes:
    """What earlier checks found, by the parts that it breaks."""

    def __init__(self) -> None:
        self._same: dict[tuple[str, str], Cause] = {}
        self._breaking: defaultdict[str, list[Cause]] = defaultdict(list)

    def add(self, cause: Cause) -> None:
        """Keep a finding that nothing explains."""
        finding, row = cause.finding, rows().get(cause.finding.code)
        if row is None:
            return
        if row.names_part:
            self._same.setdefault((finding.place, finding.evidence), cause)
        for part in row.breaks:
            self._breaking[part].append(cause)

    def of(self, finding: RecordedFinding, runtime: str) -> Cause | None:
        """Return the first cause of a finding on a runtime, None when nothing explains it."""
        if same := self._same.get((finding.place, finding.evidence)):
            return same
        row = rows().get(finding.code)
        for part in row.rests_on if row else ():
            for cause in self._breaking[part]:
                if part == _EXECUTED and not cause.explains_numbers_of(runtime):
                    continue
                if _may_meet(cause.finding, finding):
                    return cause
        return None


def _may_meet(cause: RecordedFinding, finding: RecordedFinding) -> bool:
    """Return whether no place of a finding is excluded: package 0 excludes package 1."""
    causes, findings = _places(cause), _places(finding)
    if len(causes) * len(findings) > _MAX_PAIRS:
        return False  # better reported twice than hidden
    return all(
        any(all(own.get(kind, value) == value for kind, value in place.items()) for place in causes)
        for own in findings
    )


def _places(finding: RecordedFinding) -> list[dict[str, str]]:
    """Return the distinct places of a finding: {"package": "1", "function": "'main'"}."""
    texts = (finding.place, *finding.others)
    return [dict(place) for place in dict.fromkeys(tuple(_PLACE.findall(text)) for text in texts)]


def _without(case: Case, own: tuple[RecordedFinding, ...], causes: list[Cause]) -> Case:
    """Return a case with its own findings alone, and the first of the causes of the others."""
    cause = causes[0].finding
    where = f"in {cause.place}" if cause.place else f"that {causes[0].check} found"
    because = f"{BECAUSE}{cause.code} {where}"
    if kept := [finding.sentence for finding in own if not finding.warning]:
        reason = f"{reason_of(kept)}; the rest is {because}"
        return replace(case, findings=own, reason=reason)
    rest = replace(case, outcome="skip", reason=because, findings=own, stage="", signal="")
    return replace(rest, figures={}, histograms={}, comparisons=0)


def markdown() -> str:
    """Return the page `docs/findings.md`."""
    lines = [
        "# Findings",
        "",
        "Each fault that `harness check` finds has a code, which never changes. A *warning* fails",
        "no check unless you give `--strict`. When a finding makes other checks meaningless, they",
        "are skipped because of it: repair it, and check again. `harness findings --markdown`",
        "writes this page; `harness findings CODE` prints one row.",
    ]
    for section, title in SECTIONS.items():
        found = [row for row in rows().values() if row.code[0] == section]
        if not found:
            continue
        lines += ["", f"## {title}", "", "| code | check | wrong | remedy | source |"]
        lines.append("|---|---|---|---|---|")
        for row in found:
            cells = [f"{row.code}{', warning' if row.severity == 'warning' else ''}", row.check]
            cells += [row.sentence, row.remedy]
            cells.append(f"{row.source}{f'; {row.versions}' if row.versions else ''}")
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
