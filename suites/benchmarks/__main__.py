"""Measure the commits of a repository, judge their history, publish it.

    python -m harness.suites.benchmarks run      measure the checked-out commit
    python -m harness.suites.benchmarks track    exit with 1 when the history has a regression
    python -m harness.suites.benchmarks publish  commit the results to the branch, write the page

`run` measures in this Python. With `--exporter executorch@CHECKOUT`, the results belong to the
commit of that checkout, and so do those that `track` and `publish` then read.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.suites.benchmarks.history import (
    Judged,
    Regression,
    machine_class,
    publish,
    register_machine,
    require_asv,
    run_asv,
    system_build,
)
from harness.suites.benchmarks.repository import BRANCH, Repository, git

THRESHOLD = 5.0  # percent
UNDECIDED = 4  # exit status, as that of `harness gate`


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    args = _parser().parse_args(words)
    try:
        require_asv()
        status: int = args.run(args)
    except HarnessError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("benchmarks: interrupted; nothing of this command is kept", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure the checked-out commit")
    run.set_defaults(run=_run)
    for name, text in (
        ("subject", "a model of `harness models` or a subject of yours; default: tiny"),
        ("mode", "single or multifunction; default: all that a subject has"),
        ("runtime", "default: those of harness.toml, or else all that are timed"),
    ):
        run.add_argument(f"--{name}", action="append", metavar=name.upper(), help=text)
    run.add_argument("--rounds", type=int, default=8, help="timed rounds (default: 8)")
    run.add_argument(
        "--machine", help=f"the machine's class, which names its series; here: {machine_class()}"
    )
    run.add_argument("--bench", action="append", default=[], help="asv's --bench: a pattern")
    run.add_argument("--dry-run", action="store_true", help="keep no result")
    track = commands.add_parser("track", help="look for regressions in the history")
    track.set_defaults(run=_track)
    kept = commands.add_parser("publish", help=f"commit results to the branch {BRANCH}")
    kept.set_defaults(run=_publish)
    for command in (run, track, kept):
        command.add_argument(
            "--exporter",
            action="append",
            default=[],
            help="as for `harness export`; a checkout's commits are then those that are measured",
        )
    for command in (track, kept):
        command.add_argument(
            "--threshold",
            type=float,
            default=THRESHOLD,
            metavar="PERCENT",
            help=f"ignore smaller steps (default: {THRESHOLD:g})",
        )
        command.add_argument(
            "--accept",
            action="append",
            default=[],
            metavar="[SERIES=]COMMIT",
            help="accept what a commit and those before it did, to the series that match a pattern",
        )
    track.add_argument(
        "--allow-inconclusive",
        action="store_true",
        help=f"exit with 0, not {UNDECIDED}, when no series has points enough",
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    """Measure, and file the results under the commit."""
    from harness.fixtures.project import project
    from harness.results.machine import Header
    from harness.runtimes import runtime_row
    from harness.suites.benchmarks.language_models import ARTIFACT, TIMED, VARIABLE, Settings

    if args.rounds < 1:
        raise HarnessError(f"--rounds must be at least 1, not {args.rounds}")
    repository, exporters = _repository(args.exporter)
    if not args.dry_run:
        repository.require_clean()
    own = {name: _own_exporter(name) for name in args.subject or ["tiny"]}
    if args.exporter:
        subjects = {name: label if label == ARTIFACT else None for name, (label, _) in own.items()}
        exporters |= {label: "" for label, _ in own.values() if label == ARTIFACT}
    else:
        subjects, exporters = {name: label for name, (label, _) in own.items()}, dict(own.values())
    settings = Settings(
        folder=str(Path.cwd()),
        subjects=subjects,
        exporters=exporters,
        modes=args.mode or _modes(list(subjects)),
        runtimes=[runtime_row(name).name for name in args.runtime or project().runtimes or TIMED],
        rounds=args.rounds,
    )
    machine = args.machine or machine_class()
    if not re.fullmatch(r"[\w.-]+", machine):
        raise HarnessError(f"--machine {machine}: use letters, digits, '.', '_' and '-'")
    register_machine(machine)
    chosen = _digest(subjects, exporters, settings.modes, settings.runtimes)
    config = repository.configuration(parameters=chosen)
    words = ["run", "--config", str(config), f"--environment=installed:{sys.executable}"]
    words += ["--machine", machine, "--record-samples", "--show-stderr"]
    words += [word for pattern in args.bench for word in ("--bench", pattern)]
    words += [f"--set-commit-hash={repository.commit}", *["--dry-run"] * args.dry_run]
    print(f"benchmarks: {repository.name} at {repository.commit[:12]} on {machine}", flush=True)
    try:
        all_passed = run_asv(words, {VARIABLE: settings.to_json()})
    finally:
        versions = {label: _versions(name) for label, name in exporters.items() if name}
        options = {"subjects": list(subjects), "rounds": settings.rounds}
        session = Header.here(options, versions).to_json()
        session["machine"] = {**session["machine"], "build": system_build()}
        figures = repository.note(machine, session)
    if not all_passed:
        print("benchmarks: a benchmark failed; asv's output above says why", file=sys.stderr)
        return 1
    if not figures and not args.dry_run:
        print("benchmarks: every benchmark was skipped: nothing was measured", file=sys.stderr)
        return 1
    return 0


def _track(args: argparse.Namespace) -> int:
    """Print the regressions of a history; return 1 when it has one."""
    repository, _ = _repository(args.exporter)
    judged = publish(repository, **_limits(args, repository))
    for regression in judged.unconfirmed:
        print(f"the machine's, as the control changed too: {_sentence(regression, repository)}")
    for regression in judged.regressions:
        print(f"REGRESSION {_sentence(regression, repository)}")
    _summarise(judged, repository)
    if judged.regressions:
        return 1
    if not judged.compared and not args.allow_inconclusive:
        print("benchmarks: no series has points enough, so nothing was compared", file=sys.stderr)
        return UNDECIDED
    return 0


def _publish(args: argparse.Namespace) -> int:
    """Write the page, and commit the results to the branch."""
    repository, _ = _repository(args.exporter)
    judged = publish(repository, **_limits(args, repository))
    commit = repository.keep()
    _summarise(judged, repository)
    print(f"branch {BRANCH} is at {commit[:12]}: git push origin {BRANCH}")
    return 0


def _summarise(judged: Judged, repository: Repository) -> None:
    if judged.unknown:
        print(
            f"benchmarks: {judged.unknown} measured commits are not in {repository.root} and were "
            "left out: fetch its history (git fetch --unshallow)",
            file=sys.stderr,
        )
    print(
        f"{judged.compared} of {judged.series} series compared, "
        f"{len(judged.regressions)} regressions; page: {repository.page / 'index.html'}"
    )


def _sentence(found: Regression, repository: Repository) -> str:
    first, second = found.commits
    where = second[:12] if first is None else f"{first[:12]}..{second[:12]}"
    subject = git(repository.root, "log", "-1", "--format=%s", second, check=False)
    change = f"{(found.after / found.before - 1):+.1%}" if found.before else "from 0"
    also = f"; with it changed {', '.join(found.changed)}" if found.changed else ""
    return (
        f"{found.series.removeprefix('language_models.')} on {found.machine}: "
        f"{found.before:.6g} -> {found.after:.6g} {found.unit} ({change}) at {where} "
        f"({subject}){also}"
    )


def _limits(args: argparse.Namespace, repository: Repository) -> dict[str, object]:
    """Return asv's settings of the limits; raises HarnessError for an unknown commit."""
    if not 0 <= args.threshold < 1000:
        raise HarnessError(f"--threshold {args.threshold}: give a percentage of at least 0")
    accepted = {}
    for word in args.accept:
        pattern, _, revision = word.rpartition("=")
        commit = git(
            repository.root, "rev-parse", "-q", "--verify", f"{revision}^{{commit}}", check=False
        )
        if not commit:
            raise HarnessError(f"--accept {word}: {repository.root} has no commit {revision!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise HarnessError(f"--accept {word}: {pattern!r} is not a pattern ({error})") from None
        accepted[f".*(?:{pattern})" if pattern else ".*"] = commit
    return {
        "regressions_thresholds": {".*": args.threshold / 100},
        "regressions_first_commits": accepted,
    }


def _repository(names: Sequence[str]) -> tuple[Repository, dict[str, str]]:
    """Return the repository whose commits are measured, and exporters by the labels of series."""
    from harness.export.exporters import get_exporter
    from harness.fixtures.project import project

    exporters: dict[str, str] = {}
    checkout = None
    for name in names:
        resolved = project().exporter(name)
        path = Path(resolved.partition("@")[2]).expanduser().absolute()
        if "@" in resolved and (path / "src" / "executorch").is_dir():
            if checkout is not None:
                raise HarnessError(f"--exporter {name}: one checkout's commits can be measured")
            checkout, label = path, "executorch"
            resolved = f"executorch@{path}"
        elif name in project().exporters:
            label = name
        else:
            label = get_exporter(resolved).label if "/" in resolved else resolved
        if label in exporters:
            raise HarnessError(f"--exporter {name}: {label} is named twice")
        exporters[label] = resolved
    here = Path.cwd()
    return (Repository(checkout, here) if checkout else Repository(here)), exporters


def _own_exporter(subject: str) -> tuple[str, str]:
    """Return the label and the name of a subject's own exporter; an artifact has none."""
    from harness.fixtures.project import project
    from harness.suites.benchmarks.language_models import ARTIFACT
    from harness.suites.conformance.subjects import row_of

    row = row_of(subject)
    if "artifact" in row.files:
        return ARTIFACT, ""
    name = row.exporter or "executorch"
    return name, project().exporter(name)


def _modes(subjects: Sequence[str]) -> list[str]:
    from harness.suites.conformance.subjects import modes_of

    return list(dict.fromkeys(mode for name in subjects for mode in modes_of(name)))


def _versions(exporter: str) -> dict[str, str]:
    from harness.export.exporters import get_exporter

    return {name: version or "-" for name, version in get_exporter(exporter).versions.items()}


def _digest(*chosen: Iterable[str]) -> str:
    """Return a short name of what a session measures."""
    return hashlib.sha256(repr([list(names) for names in chosen]).encode()).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main())
