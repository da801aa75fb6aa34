"""What a CI job of a repository with models runs: judge, compare with the base branch, tell.

    python -m harness.suites.ci conformance   judge the subjects of the repository's harness.toml
    python -m harness.suites.ci gate          compare them with those of the base branch
    python -m harness.suites.ci merge DIR     draw the merged streams of shards, by machine
    python -m harness.suites.ci history       measure this commit, keep it, and look for regressions
    python -m harness.suites.ci comment       write one comment on the pull request, or renew it

`action.yml` and `.github/workflows/models.yml` call it. Each command but the last adds to the job's
summary and to `summary.md` among the results, and annotates what fails. Outside GitHub Actions the
same text goes to the terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.measure.verdicts import ACCEPTABLE
from harness.suites.benchmarks.repository import BRANCH, FOLDER
from harness.suites.ci.tell import (
    FAILED,
    NOTICE,
    annotate,
    comment,
    summarise,
    tell_gate,
    tell_history,
    tell_run,
)

STREAM = "conformance.jsonl"
BASE = ".harness-base"  # the work tree of the base, in that of the repository
UNDECIDED = 4  # exit status of `harness gate`
PUSHES = 5  # tries, while other machines push to the same branch


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    args = _parser().parse_args(words)
    try:
        status: int = args.run(args)
    except HarnessError as error:
        annotate(FAILED, f"harness {args.command}", str(error))
        return error.exit_status
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="harness.suites.ci", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    judge = commands.add_parser("conformance")
    judge.set_defaults(run=conformance)
    judge.add_argument("--shard", default="", metavar="K/N")
    compare = commands.add_parser("gate")
    compare.set_defaults(run=gate)
    compare.add_argument("--base", default="", help="a branch or a commit of origin")
    compare.add_argument("--gate-arguments", default="", help="of `harness gate`, as for a shell")
    measure = commands.add_parser("history")
    measure.set_defaults(run=history)
    measure.add_argument("--machine", default="", help="the class that names the series")
    merged = commands.add_parser("merge")
    merged.set_defaults(run=merge)
    merged.add_argument("folder", type=Path)
    merged.add_argument("--machines", default="", help="those that must have results")
    for command in (judge, compare, measure):
        for name in ("subjects", "exporters", "runtimes"):
            command.add_argument(f"--{name}", default="", help="names, with spaces between them")
    for command in (judge, compare):
        command.add_argument("--arguments", default="", help="of `harness conformance`")
    for command in (judge, compare, measure, merged):
        command.add_argument("--results", type=Path, default=Path("results"))
    said = commands.add_parser("comment")
    said.set_defaults(run=lambda args: comment(args.summaries))
    said.add_argument("summaries", nargs="+", type=Path)
    return parser


def conformance(args: argparse.Namespace) -> int:
    """Judge the subjects here; return the status of `harness conformance`."""
    subjects = args.subjects.split() or list(_subjects(Path.cwd())) or ["tiny"]
    words = [*_chosen(args, subjects), *_options("shard", [args.shard] if args.shard else [])]
    status = _harness("conformance", "--results", str(args.results.absolute()), *words)
    if status in (0, 1):
        tell_run(args.results / STREAM, args.results)
    else:
        annotate(FAILED, "conformance", "it could not run; the log above says why")
    return status


def _chosen(args: argparse.Namespace, subjects: Sequence[str]) -> list[str]:
    """Return the options of `harness conformance`."""
    runtimes = args.runtimes.split() or runtimes_of_the_runner(os.environ)
    words = [*_options("fixture", subjects), *_options("exporter", _exporters(args))]
    return [*words, *_options("runtime", runtimes), *shlex.split(args.arguments)]


def gate(args: argparse.Namespace) -> int:
    """Compare with the base branch; return the worst status of `harness gate`.

    A repository that is a checkout of ExecuTorch is compared as an exporter. In any other, subjects
    that the base has as well are compared by their results, and their artifacts one by one.
    """
    if not args.base:
        return _nothing(args, "there is no base branch: the gate is for pull requests")
    base, here = _base_tree(args.base), Path.cwd()
    named = args.subjects.split()
    if _is_executorch(here):
        sides = ["--base", f"executorch@{base}", "--head", f"executorch@{here}"]
        return _gate(args, "exporter", *sides, *_options("fixture", named))
    subjects = [name for name in _subjects(base) if name in (named or _subjects(here))]
    if not subjects:
        return _nothing(args, f"the base {args.base} has none of these subjects")
    streams = []
    for root, side in ((base, "base"), (here, "head")):
        results = args.results / f"gate-{side}"
        words = ["conformance", "--results", str(results.absolute()), *_chosen(args, subjects)]
        if _harness(*words, folder=root) not in (0, 1):
            raise HarnessError(f"conformance of the {side} could not run; see above")
        streams.append(str(results / STREAM))
    statuses = [_gate(args, "results", *streams)]
    ours, theirs = _artifacts(args, base, subjects), _artifacts(args, here, subjects)
    for name in ours:
        if name in theirs and _digest(ours[name]) != _digest(theirs[name]):
            paths = (os.path.relpath(path, here) for path in (ours[name], theirs[name]))
            statuses.append(_gate(args, name, *paths))
    return next(status for status in (3, 2, 1, UNDECIDED, 0) if status in statuses)


def _exporters(args: argparse.Namespace) -> list[str]:
    """Return the names of the exporters; a checkout of ExecuTorch judges itself."""
    here = Path.cwd()
    return args.exporters.split() or ([f"executorch@{here}"] if _is_executorch(here) else [])


def _gate(args: argparse.Namespace, name: str, *words: str) -> int:
    """Run one comparison, and tell what it found."""
    folder = args.results / "gate" / name.replace("/", "-").replace(":", "-")
    more = shlex.split(args.gate_arguments)
    if name != "results":
        more = _of_artifacts(more)
    status = _harness("gate", *words, "--results", str(folder.absolute()), *more)
    if (folder / "gate.json").exists():
        tell_gate(folder, args.results)
    else:
        annotate(FAILED, f"gate: {name}", "it could not compare; the log above says why")
    return status


def _of_artifacts(words: Sequence[str]) -> list[str]:
    """Return the gate's words without the names of facts, which only result files can accept."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accept", action="append", default=[])
    accepted, others = parser.parse_known_args(words)
    return [*others, *_options("accept", [n for n in accepted.accept if n in ACCEPTABLE])]


def _artifacts(args: argparse.Namespace, folder: Path, subjects: Sequence[str]) -> dict[str, Path]:
    """Return the artifacts of a folder's project, exported now, by subject and mode."""
    from harness.fixtures.subjects import locate
    from harness.suites.conformance.subjects import modes_of, row_of

    found = {}
    with contextlib.chdir(folder):
        for name in subjects:
            exists = "artifact" in row_of(name).files
            for prefix in [f"{e}:" for e in args.exporters.split() if not exists] or [""]:
                for word in [name] if exists else [f"{prefix}{name}/{m}" for m in modes_of(name)]:
                    if located := locate(word):
                        found[word] = located.path.absolute()
    return found


def _digest(path: Path) -> list[tuple[str, str]]:
    """Return the SHA-256 of a file, or of all files in a folder by their names."""
    found = []
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append((str(part.relative_to(path)), digest))
    return found


def merge(args: argparse.Namespace) -> int:
    """Merge the shards of each machine; return 1 when one of the runs did not pass.

    A folder `results-MACHINE-K` in the given one holds shard K of a machine. Raises HarnessError
    when a shard or a machine is missing.
    """
    from harness.report import run_table, write_report
    from harness.results.merge import merge as merge_streams
    from harness.results.merge import write_run

    machines: dict[str, list[str]] = {}
    for path in sorted(args.folder.glob(f"results-*/**/{STREAM}")):
        name = path.relative_to(args.folder).parts[0].removeprefix("results-")
        machines.setdefault(name.rpartition("-")[0] or name, []).append(str(path))
    missing = [name for name in args.machines.split() if name not in machines]
    if missing or not machines:
        lost = " and ".join(f"results-{name}-*" for name in missing or ["*"])
        raise HarnessError(
            f"{args.folder}: {lost} with {STREAM} is missing; see why the jobs failed"
        )
    passed = True
    for machine, streams in machines.items():
        run = merge_streams(streams)
        if len(streams) == 1 and run.header.shard.get("count", 1) > 1:
            shard = "{index}/{count}".format(**run.header.shard)
            raise HarnessError(f"{machine}: shard {shard} is there alone; see why the jobs failed")
        output = args.results / machine
        write_report(run, output)
        write_run(output / STREAM, run)
        print(run_table(run), flush=True)
        tell_run(output / STREAM, args.results, machine)
        passed = passed and run.footer.passed
    return 0 if passed else 1


def history(args: argparse.Namespace) -> int:
    """Measure the commit, keep the results on the origin's branch, and look for regressions.

    Machines that push at the same time merge each other's results. Returns 1 for a regression, and
    the status of a measurement that failed.
    """
    if _git("rev-parse", "--is-shallow-repository") == "true":
        _git("fetch", "--unshallow", "origin")
    subjects = args.subjects.split() or list(_subjects(Path.cwd()))
    exporters = _options("exporter", _exporters(args))
    words = [*_options("subject", subjects), *exporters]
    words += _options("runtime", args.runtimes.split() or runtimes_of_the_runner(os.environ))
    words += _options("machine", [args.machine] if args.machine else [])
    measured = _benchmarks("run", *words)
    for attempt in range(PUSHES):
        with contextlib.suppress(HarnessError):  # the first run finds no branch
            _git("fetch", "origin", f"+{BRANCH}:refs/remotes/origin/{BRANCH}")
        if kept := _benchmarks("publish", *exporters):
            return measured or kept
        try:
            _git("push", "origin", BRANCH)
            break
        except HarnessError:
            if attempt == PUSHES - 1:
                raise
    folder = args.results / "history"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "track.txt"
    tracked = _benchmarks("track", "--allow-inconclusive", *exporters, output=output)
    tell_history(output.read_text(encoding="utf-8"), args.results)
    for page in Path(FOLDER).glob("*/html"):
        shutil.copytree(page, folder / page.parent.name, dirs_exist_ok=True)
    return measured or tracked


def runtimes_of_the_runner(environment: Mapping[str, str]) -> list[str]:
    """Return the runtimes for this runner; none where those of the project or the suite are right.

    A hosted Mac has no Neural Engine, and a virtual GPU: Core ML executes on its CPU.
    """
    from harness.fixtures.project import project

    if environment.get("RUNNER_OS") != "macOS" or project().runtimes:
        return []
    if environment.get("RUNNER_ENVIRONMENT") == "self-hosted":
        return ["coreml:cpu_and_ne", "coreml:cpu_and_gpu", "coreml:cpu_only", "executorch"]
    annotate(NOTICE, "hosted Mac", "Core ML runs on the CPU only: there is no Neural Engine")
    return ["coreml:cpu_only", "executorch"]


def _nothing(args: argparse.Namespace, reason: str) -> int:
    annotate(NOTICE, "nothing compared", reason)
    summarise(args.results, f"### Nothing compared\n\n{reason}\n")
    return 0


def _base_tree(base: str) -> Path:
    """Return a work tree of the base, which is fetched from the origin unless it is here."""
    folder = Path.cwd() / BASE
    if not folder.exists():
        try:
            commit = _git("rev-parse", "--quiet", "--verify", f"{base}^{{commit}}")
        except HarnessError:
            _git("fetch", "--no-tags", "--depth=1", "origin", base)
            commit = "FETCH_HEAD"
        _git("worktree", "add", "--detach", str(folder), commit)
    return folder


def _is_executorch(root: Path) -> bool:
    from harness.export.overlays import LAYOUT, VERSION_FILE

    return (root / LAYOUT).is_dir() and (root / VERSION_FILE).is_file()


def _subjects(folder: Path) -> tuple[str, ...]:
    """Return the names of the subjects that a folder's project declares."""
    from harness.fixtures.project import project

    with contextlib.chdir(folder):
        return tuple(project().subjects)


def _options(name: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (f"--{name}", value)]


def _harness(*words: str, folder: Path | None = None) -> int:
    """Run a command of the harness; return its exit status."""
    command = [sys.executable, "-m", "harness", *words]
    print(f"$ {shlex.join(['harness', *words])}", flush=True)
    return subprocess.run(command, cwd=folder, check=False).returncode


def _benchmarks(*words: str, output: Path | None = None) -> int:
    """Run a command of the benchmarks, whose output also goes to a file; return its status."""
    command = [sys.executable, "-m", "harness.suites.benchmarks", *words]
    print(f"$ {shlex.join(command[1:])}", flush=True)
    if output is None:
        return subprocess.run(command, check=False).returncode
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    output.write_text(done.stdout, encoding="utf-8")
    return done.returncode


def _git(*words: str) -> str:
    """Return git's output, stripped; raises HarnessError when it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"git {words[0]} failed: {reason}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
