"""What a job of GitHub Actions shows: annotations, a summary, one comment on the pull request.

Outside GitHub Actions, annotations are lines of standard error. All text of others is escaped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.report.gate import code, prose
from harness.results import Run, read_run

SUMMARY = "summary.md"
MARK = "<!-- coreml-llm-harness -->"
MAX_ANNOTATIONS = 10  # of one kind that GitHub shows for a step
MAX_ROWS = 50
MAX_COMMENT = 65_000  # characters; GitHub refuses more than 65,536
FAILED, DOUBTFUL, NOTICE = "error", "warning", "notice"  # kinds of annotations


def annotate(kind: str, title: str, message: str) -> None:
    """Print an annotation of GitHub Actions; elsewhere, a line."""
    if not os.environ.get("GITHUB_ACTIONS"):
        print(f"{kind}: {title}: {message}", file=sys.stderr)
        return
    title, message = (
        text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        for text in (title, message)
    )
    print(f"::{kind} title={title.replace(':', '%3A').replace(',', '%2C')}::{message}", flush=True)


def tell_run(path: Path, results: Path, machine: str = "") -> None:
    """Annotate the failing cases of a run and add it to the summary."""
    run = read_run(path)
    for case in _first(FAILED, [case for case in run.cases if not case.passes]):
        annotate(FAILED, case.id, case.summary)
    summarise(results, run_markdown(run, machine))


def run_markdown(run: Run, machine: str = "") -> str:
    """Return a run for a pull request: the verdict, what fails, and skips by reason."""
    failing = [case for case in run.cases if not case.passes]
    counts = ", ".join(f"{n} {outcome}" for outcome, n in run.footer.counts.items() if n)
    where = machine or f"{run.header.machine.get('os')}, {run.header.machine.get('cpu')}"
    parts = [
        f"### {'FAILED' if failing else 'PASSED'}: conformance on {code(str(where))}",
        f"{len(run.cases)} cases: {counts}; {run.footer.comparisons:,} values compared",
    ]
    if failing:
        rows = [
            f"| {code(c.id)} | **{c.outcome}** {prose(c.summary)} |" for c in failing[:MAX_ROWS]
        ]
        parts.append("\n".join(["| case | |", "|---|---|", *rows]))
        if len(failing) > MAX_ROWS:
            parts.append(f"{len(failing) - MAX_ROWS} more are in the results")
    skips = Counter(case.reason for case in run.cases if case.outcome == "skip")
    if skips:
        lines = [f"- {count}: {prose(reason)}" for reason, count in skips.most_common(MAX_ROWS)]
        title = f"<details><summary>{sum(skips.values())} skipped</summary>"
        parts.append("\n".join([title, "", *lines, "", "</details>"]))
    return "\n\n".join(parts) + "\n"


def tell_gate(folder: Path, results: Path) -> None:
    """Annotate what the gate found, and add its Markdown to the summary."""
    found = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    for verdict, kind in (("regression", FAILED), ("changed", FAILED), ("inconclusive", DOUBTFUL)):
        metrics = [metric for metric in found["metrics"] if metric["verdict"] == verdict]
        for metric in _first(kind, metrics):
            change = f"{metric['base']} -> {metric['head']}: {metric['reason']}"
            annotate(kind, f"{verdict}: {metric['case']}", f"{metric['name']} {change}")
    summarise(results, (folder / "gate.md").read_text(encoding="utf-8"))


def tell_history(text: str, results: Path) -> None:
    lines = [line for line in text.splitlines() if not line.startswith(("[", "\u00b7"))]
    found = [line.removeprefix("REGRESSION ") for line in lines if line.startswith("REGRESSION ")]
    for line in _first(FAILED, found):
        annotate(FAILED, "regression in the history", line)
    verdict = "### FAILED" if found else "### PASSED"
    items = "\n".join(f"- {prose(line)}" for line in lines[-MAX_ROWS:])
    summarise(results, f"{verdict}: history\n\n{items}\n")


def comment(paths: Sequence[Path]) -> int:
    """Write the summaries as one comment on the pull request, or renew the one that is there.

    The token of a pull request from a fork may not comment: that is said, and no failure.
    """
    event = json.loads(Path(variable("GITHUB_EVENT_PATH")).read_text(encoding="utf-8"))
    number = (event.get("pull_request") or {}).get("number")
    if not isinstance(number, int):
        print("this run is of no pull request: there is nothing to comment on")
        return 0
    texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    if not texts:
        raise HarnessError("there is no summary to comment with; see why the steps before failed")
    body = "\n\n".join([MARK, *texts])
    if len(body) > MAX_COMMENT:
        body = body[:MAX_COMMENT].rpartition("\n")[0] + "\n\nThe rest is in the job's summary.\n"
    comments = f"repos/{variable('GITHUB_REPOSITORY')}/issues/{number}/comments"
    mine = f'.[] | select(.body | startswith("{MARK}")) | .id'
    try:
        found = _gh("--paginate", comments, "--jq", mine).split()
        method, place = "POST", comments
        if found:
            method, place = "PATCH", f"{comments.rpartition(f'/{number}/')[0]}/comments/{found[0]}"
        _gh("--method", method, place, "--input", "-", given=json.dumps({"body": body}))
    except HarnessError as error:
        annotate(DOUBTFUL, "no comment", f"{error}; the job needs pull-requests: write")
    return 0


def summarise(results: Path, text: str) -> None:
    results.mkdir(parents=True, exist_ok=True)
    places = [str(results / SUMMARY), os.environ.get("GITHUB_STEP_SUMMARY", "")]
    for place in filter(None, places):
        with Path(place).open("a", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")


def _first(kind: str, found: Sequence[Any]) -> Iterator[Any]:
    """Yield as many as GitHub shows; the last place says how many there are."""
    few = len(found) <= MAX_ANNOTATIONS
    yield from found if few else found[: MAX_ANNOTATIONS - 1]
    if not few:
        annotate(kind, "more", f"{len(found) - MAX_ANNOTATIONS + 1} more are in the job's summary")


def _gh(*words: str, given: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["gh", "api", *words], input=given, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise HarnessError(f"gh cannot be run ({error.strerror})") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"gh failed: {reason}")
    return done.stdout


def variable(name: str, default: str | None = None) -> str:
    value = os.environ.get(name) or default
    if not value:
        raise HarnessError(f"{name} is not set: this command is for a job of GitHub Actions")
    return value
