"""The page of a run: the verdict, what failed and how to repeat it, every check, and drawings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from harness.report.drawings import Drawing, errors, histograms, largest_share, percent
from harness.report.page import (
    MARKS,
    Group,
    Section,
    ShownCase,
    anchors_of,
    circumstances,
    render,
    shown,
    subject_of,
)
from harness.report.programs import first_beyond, operations, sharing, weights
from harness.report.series import history, times
from harness.results import NOT_APPLICABLE, Case, RecordedFinding, Run
from harness.text import counted

_OPENED = 3  # cases of each group of failures
_MAX_CELLS = 200_000  # of the matrix; without a limit, its size is the square of the cases
_NO_RUNTIME = "without a runtime"


@dataclass(frozen=True)
class Cell:
    """A case in the matrix: how it is shown, its mark, the anchor it leads to, and its name."""

    shown: str
    mark: str
    anchor: str
    label: str


@dataclass(frozen=True)
class MatrixRow:
    """A row: its name, what belongs to it, and a cell for each column, None without a case."""

    name: str
    detail: str
    cells: Sequence[Cell | None]
    seconds: float
    share: float


@dataclass(frozen=True)
class Matrix:
    """Subjects, checks and runtimes; the longer axis runs down, and rows with failures come first.

    `groups` are runtimes above the columns with the number of these; `absent` names the runtimes
    that executed nothing.
    """

    corner: str
    columns: Sequence[str]
    rows: Sequence[MatrixRow]
    groups: Sequence[tuple[str, int]]
    absent: str


@dataclass(frozen=True)
class RunPage:
    """What the page of a run shows; the template reads its attributes."""

    run: Run
    earlier: Sequence[Run] = ()

    @property
    def marks(self) -> dict[str, str]:
        """The marks of the matrix that occur in it."""
        return {name: mark for name, mark in MARKS.items() if name in self.counts}

    @property
    def title(self) -> str:
        """The suites of the run."""
        suites = sorted({case.suite for case in self.run.cases})
        return "Results of " + (", ".join(suites) or "a run")

    @property
    def verdict(self) -> str:
        """The verdict in a word."""
        return "Passed" if self.run.footer.passed else "Failed"

    @property
    def tone(self) -> str:
        """The colour of the verdict."""
        return "good" if self.run.footer.passed else "bad"

    @property
    def summary(self) -> str:
        """The verdict in a sentence, then the rest in another."""
        counts, footer = self.run.footer.counts, self.run.footer
        skipped, known = counts.get("skip", 0), counts.get("known", 0)
        judged = len(self.run.cases) - skipped
        bad = [one for one in self.cases if not one.case.passes]
        if bad:
            subjects = {subject_of(one.case) for one in bad}
            of = len({subject_of(case) for case in self.run.cases})
            said = f"{len(bad)} of {judged} checks failed, on {len(subjects)} of "
            said += counted(of, "subject")
        elif judged - known:
            said = f"all {judged - known} checks that could run are right"
        else:
            said = "nothing was compared"
        said += f" ({footer.comparisons:,} comparisons in {footer.seconds:.1f} s)"
        rest = [counted(footer.warnings, "warning")] if footer.warnings else []
        rest += [f"{counted(known, 'known defect')}"] if known else []
        rest += [f"{skipped} skipped, for reasons that are listed below"] if skipped else []
        return f"{said}. {'; '.join(rest)}." if rest else f"{said}."

    @property
    def highlights(self) -> Iterator[tuple[str, str, str]]:
        """What a reader looks for first: a name, a value, and the anchor of more."""
        bad = [one for one in self.cases if not one.case.passes]
        if bad:
            yield "First failure", f"{bad[0].check} {bad[0].place}", bad[0].anchor
        if diverged := first_beyond(self.run.cases):
            yield "Diverges first", diverged, "operations"
        shares = [(found, one) for one in self.cases if (found := largest_share(one.case))]
        if shares:
            (share, name), one = max(shares, key=lambda pair: pair[0][0])
            title = "Nearest to its bound" if share <= 1 else "Farthest beyond its bound"
            yield title, f"{one.check}, {name}, {one.place}: {percent(share)}", one.anchor
        if stored := sharing(self.run.cases):
            text, case = stored
            yield f"Weights of {subject_of(case)}", text, "weights"

    @property
    def contents(self) -> Iterator[tuple[str, str]]:
        """The anchors and the titles of the sections."""
        yield from ((one.anchor, one.title) for one in self.findings if one.groups)
        yield from ((one.anchor, one.title) for one in self.drawings if one.leads)
        if self.matrix.rows:
            yield "matrix", "Every check"
        yield from ((one.anchor, one.title) for one in self.drawings if not one.leads)
        yield from ((one.anchor, one.title) for one in self.folded if one.groups)
        yield "circumstances", "Circumstances"

    @property
    def counts(self) -> dict[str, int]:
        """The number of cases by how they are shown, the worst first."""
        found = Counter(one.shown for one in self.cases)
        return {name: found[name] for name in MARKS if found[name]}

    @cached_property
    def cases(self) -> list[ShownCase]:
        """The cases of the run, the worst first."""
        anchors = anchors_of(self.run.cases)
        ranks = list(MARKS)
        in_order = sorted(self.run.cases, key=lambda case: ranks.index(shown(case)))
        return [ShownCase(case, anchors[case.id], self.run.header) for case in in_order]

    @cached_property
    def findings(self) -> list[Section]:
        """The failures and the warnings, by code."""
        bad = [one for one in self.cases if not one.case.passes]
        warned = [one for one in self.cases if one.shown == "warning"]
        return [
            Section("failures", "Failures", "fail", list(_by_cause(bad)), _OPENED),
            Section("warnings", "Warnings", "warning", list(_by_cause(warned))),
        ]

    @cached_property
    def folded(self) -> list[Section]:
        """The skipped cases and the known defects by their reasons, and the passed by check."""
        of: defaultdict[str, list[ShownCase]] = defaultdict(list)
        for one in self.cases:
            of[one.shown].append(one)
        return [
            Section("known", "Known defects", "known", _by_reason(of["known"], "known")),
            Section("skipped", "Skipped", "skip", _by_reason(of["skip"], "skip")),
            Section("passed", "Passed", "pass", _by_check(of["pass"])),
        ]

    @cached_property
    def matrix(self) -> Matrix:
        """The cases by subject, check and runtime."""
        skipped = next(one for one in self.folded if one.anchor == "skipped")
        reasons = {one.case.id: group.anchor for group in skipped.groups for one in group.cases}
        return matrix(self.cases, self.run.cases, reasons)

    @cached_property
    def drawings(self) -> list[Drawing]:
        """The drawings for which the run has figures."""
        anchors, cases = {one.case.id: one.anchor for one in self.cases}, self.run.cases
        of_errors = (draw(cases, anchors) for draw in (operations, errors, histograms))
        drawn = *of_errors, weights(cases), times(cases), history(self.run, self.earlier)
        return [one for one in drawn if one is not None]

    @property
    def circumstances(self) -> dict[str, Any]:
        """What the run depends on."""
        return circumstances(self.run.header)


def html_page(run: Run, earlier: Sequence[Run] = ()) -> str:
    """Return the page of a run as one HTML file, with the course of its figures since `earlier`."""
    page = RunPage(run, earlier)
    return render("run", page, page.tone, "page.js")


def _grouped(
    cases: Iterable[ShownCase], key: Callable[[ShownCase], Hashable]
) -> list[list[ShownCase]]:
    """Return the cases in groups of equal keys, the largest group first."""
    groups: defaultdict[Hashable, list[ShownCase]] = defaultdict(list)
    for one in cases:
        groups[key(one)].append(one)
    return sorted(groups.values(), key=lambda group: -len(group))


def _by_cause(cases: Iterable[ShownCase]) -> Iterator[Group]:
    """Yield the cases by the code of their first finding, or by outcome and check without one."""
    for group in _grouped(cases, lambda one: _cause(one.case) or (one.shown, one.check)):
        first = group[0]
        if cause := _cause(first.case):
            meaning = next(f.meaning for f in _findings(first.case) if f.code == cause)
            yield Group(cause, meaning, group)
        else:
            yield Group(first.shown, first.check, group)


def _findings(case: Case) -> list[RecordedFinding]:
    """Return the findings with a row in the table, the failures first."""
    return sorted((one for one in case.findings if one.meaning), key=lambda one: one.warning)


def _cause(case: Case) -> str:
    return next((one.code for one in _findings(case)), "")


def _by_reason(cases: Iterable[ShownCase], name: str) -> list[Group]:
    groups = _grouped(cases, lambda one: one.case.summary)
    return [
        Group(name, group[0].case.summary, group, f"{name}-{number}")
        for number, group in enumerate(groups, start=1)
    ]


def _by_check(cases: Iterable[ShownCase]) -> list[Group]:
    groups = groupby(sorted(cases, key=lambda one: one.check), key=lambda one: one.check)
    return [
        Group("pass", check, list(group), f"pass-{number}")
        for number, (check, group) in enumerate(groups, start=1)
    ]


def matrix(
    shown_cases: Iterable[ShownCase], cases: Sequence[Case], reasons: Mapping[str, str]
) -> Matrix:
    """Return the matrix of a run, without rows if it is too large for a page.

    `reasons` has the anchor of the reason for which a case was skipped, by its id.
    """
    by_id = {one.case.id: one for one in shown_cases}
    ran = {(case.runtime, case.check) for case in cases if case.outcome != "skip"}
    places: dict[tuple[str, tuple[str, str]], ShownCase] = {}
    for case in sorted(cases, key=lambda case: case.runtime):
        if (case.runtime, case.check) in ran:
            places[subject_of(case), (case.runtime, case.check)] = by_id[case.id]
    subjects = list(dict.fromkeys(subject_of(case) for case in cases))
    checks = list(dict.fromkeys(check for _, check in places))
    runtimes = {case.runtime for case in cases} - {runtime for runtime, _ in ran}
    absent = ", ".join(sorted(name for name in runtimes if name != NOT_APPLICABLE))
    if len(subjects) * len(checks) > _MAX_CELLS:
        return Matrix("", (), (), (), absent)
    if len(checks) >= len(subjects):
        rows = [
            _row(
                name,
                runtime if runtime != "-" else "",
                reasons,
                [places.get((subject, (runtime, name))) for subject in subjects],
            )
            for runtime, name in checks
        ]
        return Matrix("check", subjects, _worst_first(rows), (), absent)
    rows = [_row(s, "", reasons, [places.get((s, check)) for check in checks]) for s in subjects]
    groups = [
        (runtime if runtime != "-" else _NO_RUNTIME, len(list(group)))
        for runtime, group in groupby(runtime for runtime, _ in checks)
    ]
    return Matrix("subject", [name for _, name in checks], _worst_first(rows), groups, absent)


def _row(
    name: str, detail: str, reasons: Mapping[str, str], found: Sequence[ShownCase | None]
) -> MatrixRow:
    there = [one for one in found if one is not None]
    return MatrixRow(
        name,
        detail,
        [_cell(one, reasons) if one else None for one in found],
        sum(one.case.seconds for one in there),
        max((float(one.share) for one in there), default=0),
    )


def _cell(one: ShownCase, reasons: Mapping[str, str]) -> Cell:
    anchor = reasons.get(one.case.id, one.anchor)
    return Cell(one.shown, MARKS[one.shown], anchor, f"{one.check} {one.place}: {one.shown}")


def _worst_first(rows: Sequence[MatrixRow]) -> list[MatrixRow]:
    """Return the rows that fail, then those that warn, then the others, each in their order."""
    ranks = list(MARKS)
    last = ranks.index("warning") + 1
    marks = [[ranks.index(cell.shown) for cell in row.cells if cell] for row in rows]
    ranked = sorted(
        zip((min([last, *found]) for found in marks), rows, strict=True), key=lambda pair: pair[0]
    )
    return [row for _, row in ranked]
