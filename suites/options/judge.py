"""Judges a trace, by the artifacts of both values, and two exports of the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.artifact import open_artifact
from harness.checks import Check
from harness.diff import diff_artifacts
from harness.errors import HarnessError
from harness.export.options import ExportOptions, check_fit, ignored_options
from harness.models import ModelConfig
from harness.results import Finding
from harness.suites.options.traces import Trace, changes, held, promised

OPTIONS = "options"  # the check, in the table of findings
_CODES = {"dead": "O01"}

Make = Callable[[ExportOptions], Path]
"""Returns the artifact of these options."""


@dataclass(frozen=True)
class Verdict:
    """What an export did with a value: `kind` is that of a trace, or one of these faults.

    | fault | what happened |
    |---|---|
    | dead | the artifacts are equal, and the export does not report it |
    | misreported | the artifacts differ, but the export reports that there is no effect |
    | broken | an artifact lacks what its options promise |
    """

    kind: str
    text: str
    comparisons: int


def judge(trace: Trace, config: ModelConfig, make: Make) -> Verdict:
    """Export at both values of an option and return the verdict.

    Raises HarnessError when an export fails, and ArtifactError for a damaged artifact.
    """
    try:
        changed = trace.changed()
        check_fit(changed, config)
    except HarnessError as error:
        return Verdict("refused", str(error), 1)
    flag = f"--{trace.option.replace('_', '-')} "
    said = [s for s in ignored_options(changed, config, [trace.option]) if s.startswith(flag)]
    both = [open_artifact(make(options)) for options in (trace.base, changed)]
    found = [one for one in diff_artifacts(*both) if not one.is_incidental]
    if not found and said:
        return Verdict("ignored", said[0], 1)
    if not found:
        values = getattr(trace.base, trace.option), trace.value
        text = f"{flag}{values[1]} and {values[0]} give equal artifacts, and no report"
        return Verdict("dead", text, 1)
    if said:
        return Verdict("misreported", f"'{said[0]}', but {len(found)} things differ", len(found))
    return _promises(trace, config, [held(artifact, config) for artifact in both])


def _promises(trace: Trace, config: ModelConfig, properties: list[dict[str, Any]]) -> Verdict:
    """Return whether both artifacts hold what their options promise, and what differs."""
    wanted = [promised(options, config) for options in (trace.base, trace.changed())]
    wrong = [
        f"{name} with {getattr(options, trace.option)}: {_pair(*values)}"
        for options, want, have in zip(
            (trace.base, trace.changed()), wanted, properties, strict=True
        )
        for name, values in changes(want, have).items()
    ]
    count = sum(map(len, wanted))
    if wrong:
        return Verdict("broken", f"not as promised: {'; '.join(wrong)}", count)
    found = changes(*properties)
    return Verdict("changed", "; ".join(f"{n}: {_pair(*v)}" for n, v in found.items()), count)


def _pair(before: object, after: object) -> str:
    return " -> ".join(
        str(next(iter(value))) if isinstance(value, set) and len(value) == 1 else str(value)
        for value in (before, after)
    )


def check_of(trace: Trace, config: ModelConfig) -> Check[Make]:
    """Return the check of an exporter's treatment of an option."""
    return Check(trace.name, partial(_findings, trace, config))


def _findings(trace: Trace, config: ModelConfig, make: Make) -> Iterator[Finding]:
    verdict = judge(trace, config, make)
    yield Finding(
        OPTIONS,
        f"--{trace.option.replace('_', '-')}",
        ok=verdict.kind == trace.verdict,
        message=f"{verdict.kind}, not {trace.verdict}: {verdict.text}",
        comparisons=verdict.comparisons,
        facts={"verdict": verdict.kind, "what changed": verdict.text},
        code=_CODES.get(verdict.kind, "O02"),
    )


def equal_exports(pair: tuple[Path, Path]) -> Iterator[Finding]:
    """Check that two exports of one input differ in what is drawn at random, and nowhere else."""
    found = diff_artifacts(*map(open_artifact, pair))
    real = [one for one in found if not one.is_incidental]
    drawn = sorted({f"{one.where or 'the artifact'}: {one.what}" for one in found})
    told = "; ".join(f"{d.where or 'the artifact'}: {d.kind} {d.what}" for d in real[:5])
    text = f"drawn at random: {'; '.join(drawn)}" if drawn else "the same bytes"
    yield Finding(
        OPTIONS,
        "two exports of one input",
        ok=not real,
        message=f"they differ in {told}",
        comparisons=1,
        facts={"verdict": "different" if real else "equal", "what changed": told or text},
        code="O03",
    )
