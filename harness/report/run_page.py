"""The page of a run: the verdict, what failed and how to repeat it, every check, and drawings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from harness.report.drawings import Drawing, errors, histograms, largest_share, percent
from harness.report.page import (
    MARKS,
    Section,
    ShownCase,
    anchors_of,
    by_cause,
    by_check,
    by_reason,
    circumstances,
    render,
    shown,
    subject_of,
)
from harness.report.programs import first_beyond, operations, sharing, weights
from harness.report.series import history, times
from harness.results import NOT_APPLICABLE, Case, Run
from harness.text import clip, counted

_OPENED = 3  # cases of each group of failures
_MAX_CELLS = 200_000  # of the matrix; without a limit, its size is the square of the cases
_NO_RUNTIME = "without a runtime"
_MAX_ROWS, _MAX_HEADER = 60, 34  # rows of an open matrix without failures; letters of a header

_RIGHT = list(MARKS).index("warning") + 1  # the rank of what neither fails nor warns
_Place = tuple[str, tuple[str, str]]  # a subject, and a runtime with a check


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
    """Subjects, checks and runtimes; the longer axis runs down, and what fails comes first.

    `groups` are runtimes above the columns with the number of these.
    """

    corner: str
    columns: Sequence[str]
    rows: Sequence[MatrixRow]
    groups: Sequence[tuple[str, int]]

    @property
    def title(self) -> str:
        """The number of its rows."""
        return counted(len(self.rows), self.corner)

    @property
    def opened(self) -> bool:
        """Whether it is short, or something in it fails or warns."""
        return len(self.rows) <= _MAX_ROWS or _rank(self.rows[0].cells) < _RIGHT

    @property
    def names(self) -> Iterator[tuple[str, str]]:
        """Each column's name, cut to what a header holds, and in full."""
        return ((clip(name, _MAX_HEADER), name) for name in self.columns)


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
        if self.run.header.options.get("compared with") == "its own weights":
            rest += ["its own weights were taken as right: no checkpoint was given"]
        return f"{said}. {'; '.join(rest)}." if rest else f"{said}."

    @property
    def highlights(self) -> Iterator[tuple[str, str, str]]:
        """What a reader looks for first: a name, a value, and the anchor of more."""
        bad = [one for one in self.cases if not one.case.passes]
        if bad:
            first = bad[0]
            yield "First failure", f"{first.check} {first.place}{first.tensor}", first.anchor
        if diverged := first_beyond(self.run.cases):
            yield "Diverges first", diverged, "operations"
        shares = [(found, one) for one in self.cases if (found := largest_share(one.case))]
        if shares and any(share for (share, _), _ in shares):
            (share, name), one = max(shares, key=lambda pair: pair[0][0])
            title = "Nearest to its bound" if share <= 1 else "Farthest beyond its bound"
            yield title, f"{one.check}, {name}, {one.place}: {percent(share)}", one.anchor
        if stored := sharing(self.run.cases):
            text, case = stored
            more = len({subject_of(one) for one in self.run.cases if one.check == "copies"}) - 1
            others = f", and of {counted(more, 'more subject')}" if more > 0 else ""
            yield f"Weights of {subject_of(case)}{others}", text, "weights"

    @property
    def contents(self) -> Iterator[tuple[str, str]]:
        """The anchors and the titles of the sections."""
        yield from ((one.anchor, one.title) for one in self.findings if one.groups)
        yield from ((one.anchor, one.title) for one in self.drawings if one.leads)
        if self.matrices:
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
            Section("failures", "Failures", "fail", list(by_cause(bad)), _OPENED),
            Section("warnings", "Warnings", "warning", list(by_cause(warned))),
        ]

    @cached_property
    def folded(self) -> list[Section]:
        """The skipped cases and the known defects by their reasons, and the passed by check."""
        of: defaultdict[str, list[ShownCase]] = defaultdict(list)
        for one in self.cases:
            of[one.shown].append(one)
        return [
            Section("known", "Known defects", "known", by_reason(of["known"], "known")),
            Section("skipped", "Skipped", "skip", by_reason(of["skip"], "skip")),
            Section("passed", "Passed", "pass", by_check(of["pass"])),
        ]

    @cached_property
    def matrices(self) -> list[Matrix]:
        """The cases by subject, check and runtime."""
        skipped = next(one for one in self.folded if one.anchor == "skipped")
        reasons = {one.case.id: group.anchor for group in skipped.groups for one in group.cases}
        return matrices(self.cases, self.run.cases, reasons)

    @property
    def absent(self) -> str:
        """The runtimes that executed nothing."""
        ran = {case.runtime for case in self.run.cases if case.outcome != "skip"}
        others = {case.runtime for case in self.run.cases} - ran - {NOT_APPLICABLE}
        return ", ".join(sorted(others))

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


def matrices(
    shown_cases: Iterable[ShownCase], cases: Sequence[Case], reasons: Mapping[str, str]
) -> list[Matrix]:
    """Return the matrices of a run, the worst first; none if they are too large for a page.

    Subjects that share no check are in two matrices. `reasons` has the anchor of the reason for
    which a case was skipped, by its id.
    """
    by_id = {one.case.id: one for one in shown_cases}
    ran = {case.runtime for case in cases if case.outcome != "skip"} | {NOT_APPLICABLE}
    places: dict[tuple[str, tuple[str, str]], ShownCase] = {}
    for case in sorted(cases, key=lambda case: case.runtime):
        if case.runtime in ran:
            places[subject_of(case), (case.runtime, case.check)] = by_id[case.id]
    parts = _connected(places)
    if sum(len({s for s, _ in part}) * len({c for _, c in part}) for part in parts) > _MAX_CELLS:
        return []
    found = (_matrix({place: places[place] for place in part}, reasons) for part in parts)
    halves = [half for one in found for half in _halves(one)]
    return sorted(halves, key=lambda one: _rank(one.rows[0].cells))


def _halves(one: Matrix) -> Iterator[Matrix]:
    """Yield a matrix, or what is wrong in a long one and then the rest, which is folded."""
    wrong = sum(_rank(row.cells) < _RIGHT for row in one.rows)
    if wrong and len(one.rows) > _MAX_ROWS:
        yield replace(one, rows=one.rows[:wrong])
        one = replace(one, rows=one.rows[wrong:])
    if one.rows:
        yield one


def _connected(places: Iterable[_Place]) -> list[list[_Place]]:
    """Return the places in parts that have neither a subject nor a check in common."""
    part_of: dict[object, list[_Place]] = {}
    for place in places:
        ours, theirs = sorted((part_of.setdefault(one, []) for one in place), key=len, reverse=True)
        if ours is not theirs:
            ours += theirs
            part_of[place[0]] = part_of[place[1]] = ours
            for subject, check in theirs:
                part_of[subject] = part_of[check] = ours
        ours.append(place)
    return list({id(part): part for part in part_of.values()}.values())


def _matrix(places: Mapping[_Place, ShownCase], reasons: Mapping[str, str]) -> Matrix:
    """Return one matrix: the longer axis runs down, and the worst come first on both."""

    def cells(chosen: Iterable[_Place]) -> list[Cell]:
        return [_cell(places[one], reasons) for one in chosen]

    of_subject: defaultdict[str, list[_Place]] = defaultdict(list)
    of_check: defaultdict[tuple[str, str], list[_Place]] = defaultdict(list)
    of_runtime: defaultdict[str, list[_Place]] = defaultdict(list)
    for place in places:
        of_subject[place[0]].append(place)
        of_check[place[1]].append(place)
        of_runtime[place[1][0]].append(place)
    subjects = sorted(of_subject, key=lambda one: _rank(cells(of_subject[one])))
    checks = sorted(of_check, key=lambda one: _rank(cells(of_check[one])))
    if len(checks) >= len(subjects):
        rows = [
            _row(
                name,
                runtime if runtime != NOT_APPLICABLE else "",
                reasons,
                [places.get((subject, (runtime, name))) for subject in subjects],
            )
            for runtime, name in checks
        ]
        return Matrix("check", subjects, rows, ())
    runtimes = sorted(of_runtime, key=lambda one: _rank(cells(of_runtime[one])))
    checks.sort(key=lambda check: runtimes.index(check[0]))
    rows = [_row(s, "", reasons, [places.get((s, check)) for check in checks]) for s in subjects]
    groups = [
        (runtime if runtime != NOT_APPLICABLE else _NO_RUNTIME, len(list(group)))
        for runtime, group in groupby(runtime for runtime, _ in checks)
    ]
    return Matrix("subject", [name for _, name in checks], rows, groups)


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


def _rank(cells: Iterable[Cell | None]) -> int:
    """Return the rank of the worst cell; those that neither fail nor warn are equal."""
    ranks = list(MARKS)
    return min([_RIGHT, *(ranks.index(one.shown) for one in cells if one)])
