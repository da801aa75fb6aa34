"""The gate between two runs: what the head does worse than the base, metric by metric. No torch.

A case has three kinds of metric: its outcome, its deterministic facts, its measured figures. Each
metric gets one of the `VERDICTS`. `artifacts` is the gate between two artifacts, which `timing`
times in the order and with the statistics of `statistics`. `verdicts` serves both gates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any, TypeAlias

from harness.errors import HarnessError
from harness.measure.verdicts import (
    BOUNDS,
    VERDICTS,
    Margin,
    Verdict,
    Waiver,
    fact_margin,
    fact_text,
    fact_verdict,
    figure_margin,
    figure_text,
    figure_verdict,
    outcome_verdict,
    plain_name,
)
from harness.results import Case, Run

# Of a measurement: a number, or one for each sample. JSON has no NaN: leave out what has no value.
Numbers: TypeAlias = Mapping[str, float | Sequence[float]]

# The verdicts that a waiver excuses.
WAIVABLE = ("regression", "changed", "inconclusive")
# Only these outcomes come with facts and figures that can be compared.
MEASURED = {"pass", "known", "fail"}
CHOOSING = frozenset(("check", "runtime", "fixture", "mode", "exporter", "measure"))
"""The options that choose a run's cases, and change no value of the cases that they leave."""
# kind -> margin(name, value, overrides), verdict(base, head, margin), text(value)
KINDS: dict[str, tuple[Callable[..., Margin], Callable[..., Verdict], Callable[..., str]]] = {
    "fact": (fact_margin, fact_verdict, fact_text),
    "figure": (figure_margin, figure_verdict, figure_text),
}


@dataclass(frozen=True)
class Metric:
    """One comparison of BASE and HEAD, and the gate's verdict on it.

    `case` is the case or the place in the artifact; `kind` is "outcome", "fact" or "figure";
    `base` and `head` are the values as text. `accept` is the name by which a user accepts the
    verdict `changed`; it has such a name exactly when it can get that verdict. `numbers` holds
    what a figure was judged by: for a time ratio, interval, p, samples, control.
    """

    case: str
    name: str
    kind: str
    base: str
    head: str
    verdict: str
    reason: str = ""
    accept: str = ""
    numbers: Numbers = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the metric as a JSON object."""
        return asdict(self)


TWO_KINDS = "Two kinds"  # begins the note that a reader needs before all metrics


@dataclass(frozen=True)
class GateResult:
    """All metrics, and notes on how the circumstances of BASE and HEAD differ."""

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    allow_inconclusive: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Number of metrics by verdict, every verdict named."""
        found = Counter(metric.verdict for metric in self.metrics)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def unaccepted(self) -> tuple[str, ...]:
        """The names of the changes that nobody has accepted, each once."""
        names = (metric.accept for metric in self.metrics if metric.verdict == "changed")
        return tuple(dict.fromkeys(names))

    @property
    def status(self) -> int:
        """The exit status: 1 for a regression or a change that nobody accepted, 4 if undecided.

        A result is undecided when a metric is inconclusive, unless that is allowed.
        """
        counts = self.counts
        if counts["regression"] or counts["changed"]:
            return 1
        return 4 if counts["inconclusive"] and not self.allow_inconclusive else 0

    def accepting(self, names: Iterable[str]) -> GateResult:
        """Return the result with the verdict `accepted` on all changes of these names.

        A name without a change is noted, because it may be misspelled.
        """
        names = list(dict.fromkeys(names))
        metrics = tuple(
            replace(metric, verdict="accepted")
            if metric.verdict == "changed" and metric.accept in names
            else metric
            for metric in self.metrics
        )
        unused = [name for name in names if name not in self.unaccepted]
        notes = (f"--accept {name}: there is no change of this name" for name in unused)
        return replace(self, metrics=metrics, notes=(*self.notes, *notes))

    def waiving(self, waivers: Iterable[Waiver], today: date) -> GateResult:
        """Return the result with the verdict `waived` on all that waivers excuse.

        A waiver that has expired excuses nothing: it is noted when it would have. A waiver that
        names nothing, or nothing that is worse, is noted, too.
        """
        metrics, notes = list(self.metrics), list(self.notes)
        for waiver in waivers:
            named = [
                index
                for index, metric in enumerate(self.metrics)
                if waiver.matches(metric.case, metric.name)
            ]
            found = [index for index in named if self.metrics[index].verdict in WAIVABLE]
            if not named:
                notes.append(f"No metric has the names of {waiver}")
            elif not found:
                notes.append(f"Nothing is worse that {waiver} excuses: remove it")
            elif waiver.expires < today:
                notes.append(f"Expired, and excuses nothing: {waiver}")
            else:
                for index in found:
                    reason = f"{waiver.issue}, until {waiver.expires}: {self.metrics[index].reason}"
                    metrics[index] = replace(metrics[index], verdict="waived", reason=reason)
        return replace(self, metrics=tuple(metrics), notes=tuple(notes))

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {
            "status": self.status,
            "counts": self.counts,
            "unaccepted": list(self.unaccepted),
            "notes": list(self.notes),
            "metrics": [metric.to_json() for metric in self.metrics],
        }


def compare_runs(
    base: Run,
    head: Run,
    margins: Mapping[str, float] | None = None,
    usual: Mapping[str, float] | None = None,
) -> GateResult:
    """Compare two runs.

    `margins` maps the name of a figure, or of a fact with a better direction, to the percent of
    the base's value by which it may be worse. Others have the `usual` ones, such as a project's,
    of which one that applies to nothing is noted, or the defaults of `verdicts.py`.

    In two runs about one artifact each, the artifacts are compared whatever their names are.

    Raises HarnessError when nothing could be compared, for different shards, and when one of
    `margins` applies to nothing.
    """
    for name, run in {"BASE": base, "HEAD": head}.items():
        if run.header.shard and base.header.shard != head.header.shard:
            raise HarnessError(
                f"{name} is shard {run.header.shard['index']} of {run.header.shard['count']}: merge"
                " all of them first, by harness report A B C -o DIR"
            )
    differing = set(_differing(base.header.options, head.header.options))
    merged = base.header.merged or head.header.merged  # of several machines, perhaps
    gate = _Gate(
        margins={**(usual or {}), **(margins or {})},
        same_machine=(base.header.machine, base.header.mac)
        == (head.header.machine, head.header.mac)
        and not merged,
        other_values=bool(differing - CHOOSING),
        other_cases=bool(differing & CHOOSING),
    )
    bases = {case.id: case for case in base.cases}
    heads = {case.id: case for case in _cases_by_bases_name(base, head)}
    shared = [(case, heads[id]) for id, case in bases.items() if id in heads]
    if all(_skipped_in_both(*pair) for pair in shared):
        raise HarnessError(
            f"Nothing could be compared: of {len(bases)} cases in BASE and {len(heads)} in HEAD no"
            " case is in both and executed; give two runs of the same suite"
        )
    metrics = [metric for id, case in bases.items() for metric in gate.case(case, heads.get(id))]
    metrics += [
        Metric(id, "outcome", "outcome", "", case.outcome, "new", case.summary)
        for id, case in heads.items()
        if id not in bases
    ]
    unused = gate.margins.keys() - gate.used
    no_metric = "no figure, and no fact with a better direction, of the two runs has this name"
    if wrong := unused & (margins or {}).keys():
        raise HarnessError(f"--margin {', '.join(sorted(wrong))}: {no_metric}")
    notes = [f"The margin of {name} is not used: {no_metric}" for name in sorted(unused)]
    return GateResult(tuple(metrics), (*_differences(base, head), *notes))


def _cases_by_bases_name(base: Run, head: Run) -> Iterator[Case]:
    """Yield the cases of HEAD; those of its one artifact get the name of BASE's one."""
    ours, theirs = (run.header.artifact.get("name") for run in (base, head))
    for case in head.cases:
        yield replace(case, fixture=str(ours)) if ours and case.fixture == theirs else case


def _skipped_in_both(base: Case, head: Case) -> bool:
    return base.outcome == head.outcome == "skip"


@dataclass
class _Gate:
    """The circumstances of one comparison, which hold for all its metrics."""

    margins: Mapping[str, float]
    same_machine: bool
    other_values: bool  # the runs' options differ in what decides values
    other_cases: bool  # they differ in what chooses cases
    used: set[str] = field(default_factory=set)

    def case(self, base: Case, head: Case | None) -> Iterator[Metric]:
        """Yield all metrics of a case of BASE."""
        verdict, reason = outcome_verdict(base, head)
        if head is None and self.other_cases:
            verdict, reason = "inconclusive", "HEAD was perhaps not asked for this case"
        texts = (base.outcome, head.outcome if head else "missing")
        yield Metric(base.id, "outcome", "outcome", *texts, verdict, reason)
        # A case that was repaired is not compared with its values from before.
        if head is None or verdict == "better" or not {base.outcome, head.outcome} <= MEASURED:
            return
        counted = {"comparisons": base.comparisons}, {"comparisons": head.comparisons}
        yield from self._metrics(base.id, "fact", *counted)
        yield from self._metrics(base.id, "fact", base.facts, head.facts)
        yield from self._metrics(base.id, "figure", base.figures, head.figures)

    def _metrics(
        self, case: str, kind: str, base: Mapping[str, Any], head: Mapping[str, Any]
    ) -> Iterator[Metric]:
        margin_of, verdict_of, text_of = KINDS[kind]
        for name in _names(base, head):
            margin = margin_of(name, base.get(name, head.get(name)), self.margins)
            if margin.better != "exact":
                self.used.add(plain_name(name))
            texts = (
                text_of(base[name]) if name in base else "",
                text_of(head[name]) if name in head else "",
            )
            if name in base and name in head:
                verdict = self._judge(verdict_of(base[name], head[name], margin), margin)
            elif name in base:
                verdict = ("regression", "HEAD does not have it")
            else:
                verdict = ("new", "")
            accept = plain_name(name) if kind == "fact" else BOUNDS
            accept = accept if verdict[0] == "changed" else ""
            yield Metric(case, name, kind, *texts, *verdict, accept=accept)

    def _judge(self, verdict: Verdict, margin: Margin) -> Verdict:
        """Return the verdict, or another when the two runs cannot be compared in this."""
        if self.other_values:
            return "inconclusive", "the options of the runs differ"
        if margin.of_the_machine and not self.same_machine:
            return "unjudged", "the machines of the runs differ, or one is merged"
        return verdict


def _differing(base: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    return [name for name in _names(base, head) if base.get(name) != head.get(name)]


def _names(base: Mapping[str, Any], head: Mapping[str, Any]) -> Sequence[str]:
    return [*base, *(name for name in head if name not in base)]


def _differences(base: Run, head: Run) -> Iterator[str]:
    """Yield sentences on how the circumstances of the two runs differ."""
    if CHOOSING.issuperset(_differing(base.header.options, head.header.options)):
        asked = "a case that HEAD lacks is inconclusive; run both alike to judge it"
    else:
        asked = "facts and figures are inconclusive"
    for group, consequence in (
        ("artifact", "compared all the same"),
        ("machine", "time and memory are not judged"),
        ("mac", "time and memory are not judged"),
        ("options", asked),
        ("versions", "compared all the same"),
        ("exporter_packages", "compared all the same"),
    ):
        ours, theirs = getattr(base.header, group), getattr(head.header, group)
        if differing := _differing(ours, theirs):
            changes = ", ".join(f"{n} {ours.get(n)} -> {theirs.get(n)}" for n in differing)
            yield f"The {group.replace('_', ' ')} of the runs differ ({changes}): {consequence}"
