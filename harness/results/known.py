"""Known defects of the software under test: a case that fails because of one is `known`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from harness.errors import HarnessError
from harness.results.cases import Case
from harness.results.findings import reason_of
from harness.text import parse_toml, read_file

MAX_BYTES = 1 << 20
_PATTERNS = ("check", "mode", "runtime")


@dataclass(frozen=True)
class KnownDefect:
    """A defect that is reported as `issue` and shows in the cases that all patterns match.

    Patterns are written as in a shell (`smollm2-*`); that of the fixture does not name its
    exporter. `exporter` is the kind of exporter whose artifacts have the defect, with the range of
    its versions ("executorch >=1.3, <1.6", "coreml"). With an `outcome`, the defect shows as that
    alone: one that shows as `fail` excuses no error, crash or timeout. With a `code`, it shows as
    the findings of this code alone, failures or warnings: it excuses these, and no other finding of
    the case. `reproduction` explains how to see the defect without this project.
    """

    issue: str
    reproduction: str = ""
    check: str = "*"
    fixture: str = "*"
    mode: str = "*"
    runtime: str = "*"
    exporter: str = ""
    outcome: str = "*"
    code: str = ""

    @cached_property
    def made_by(self) -> Requirement | None:
        """The kind and versions of exporters; raises HarnessError when they cannot be read."""
        try:
            return Requirement(self.exporter) if self.exporter else None
        except InvalidRequirement:
            raise HarnessError(
                f"{self.issue}: the exporter {self.exporter!r} is not a name with a range of "
                "versions, as in 'executorch >=1.3, <1.6'"
            ) from None

    def matches(self, case: Case, versions: Mapping[str, Version] | None = None) -> bool:
        """Return whether the defect shows in this case.

        `versions` are those of the run's exporters, by the name that cases carry; a range of
        versions does not hold for an exporter without one.
        """
        exporter, model = exporter_of(case)
        patterns = [(getattr(case, name), getattr(self, name)) for name in _PATTERNS]
        if not all(fnmatchcase(*pair) for pair in [(model, self.fixture), *patterns]):
            return False
        if case.outcome != "pass" and not fnmatchcase(case.outcome, self.outcome):
            return False
        if self.made_by is None:
            return True
        if exporter.partition("@")[0] != self.made_by.name:
            return False
        version = (versions or {}).get(exporter)
        unlimited = not self.made_by.specifier
        return unlimited or (
            version is not None and self.made_by.specifier.contains(version, prereleases=True)
        )


def exporter_of(case: Case) -> tuple[str, str]:
    """Return the exporter and the model that a case's fixture names; "tiny" is ExecuTorch's."""
    exporter, _, model = case.fixture.rpartition(":")
    return exporter or "executorch", model


def judge_against_known(
    case: Case, known: Iterable[KnownDefect], versions: Mapping[str, Version] | None = None
) -> Case:
    """Return the case judged by the first defect that matches it, or unchanged if none does.

    Defects with a code come last, and all that match judge the case. A defect that no longer shows
    is a failure in a release; a checkout, whose version has a local part, may have repaired it. A
    bug of the harness, which has a traceback, stays one.
    """
    matching = [defect for defect in known if defect.matches(case, versions)]
    version = (versions or {}).get(exporter_of(case)[0])
    may_be_repaired = version is not None and is_checkout(version)
    repaired = case.outcome == "pass" and may_be_repaired
    if not matching or repaired or case.traceback or case.outcome == "skip":
        return case
    if whole := next((defect for defect in matching if not defect.code), None):
        return case.judged_against_known(whole.issue)
    return _judged_by_codes(case, matching, may_be_repaired)


def _judged_by_codes(case: Case, known: Sequence[KnownDefect], may_be_repaired: bool) -> Case:
    """Return a case whose findings of known codes are warnings.

    It is `known` when nothing else fails, and fails when nothing does but a defect is gone.
    """
    failing = {one.code for one in case.findings if not one.warning}
    if excused := failing & {defect.code for defect in known}:
        findings = tuple(
            replace(one, warning=one.warning or one.code in excused) for one in case.findings
        )
        if left := [one.sentence for one in findings if not one.warning]:
            return replace(case, findings=findings, reason=reason_of(left))
        issue = next(defect.issue for defect in known if defect.code in excused)
        case = replace(case, findings=findings).judged_against_known(issue)
    if may_be_repaired or not case.passes:
        return case
    shown = {one.code for one in case.findings}
    gone = next((defect for defect in known if defect.code not in shown), None)
    return case.without_known(gone.issue) if gone else case


def is_checkout(version: Version) -> bool:
    """Return whether a version is that of a checkout: `1.5.0+src.1a2b3c4d`."""
    return (version.local or "").startswith("src.")


def parse_versions(versions: Mapping[str, str | None]) -> dict[str, Version]:
    """Return the versions that can be ordered."""
    found = {}
    for name, text in versions.items():
        try:
            found[name] = Version(text or "")
        except InvalidVersion:
            continue
    return found


def read_known(path: Path) -> tuple[KnownDefect, ...]:
    """Read the tables `[[known]]` of a TOML file.

    Raises HarnessError when the file cannot be read, or a table lacks its issue or has another key.
    """
    allowed = {field.name for field in fields(KnownDefect)}
    try:
        rows = parse_toml(read_file(path, MAX_BYTES, "a file of known defects")).get("known", [])
    except ValueError as error:
        raise HarnessError(f"{path}: the known defects cannot be read ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise HarnessError(f"{path}: known must be tables, each headed [[known]]")
    for number, row in enumerate(rows, start=1):
        if wrong := [key for key, value in row.items() if not isinstance(value, str)]:
            raise HarnessError(f"{path}: table {number}: {wrong[0]} must be a text")
        if "issue" not in row or not allowed >= row.keys():
            raise HarnessError(
                f"{path}: table {number} needs an issue, and may have "
                f"{', '.join(sorted(allowed))}; it has {', '.join(row) or 'nothing'}"
            )
    defects = tuple(KnownDefect(**row) for row in rows)
    for defect in defects:
        _ = defect.made_by  # it raises here, not in the first case
    return defects
