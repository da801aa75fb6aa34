"""The results of one repository's commits: measured by asv, judged by its steps, kept on a branch.

A history lies in the folder `.asv/NAME` of the working repository, and below `NAME/` on its branch
`benchmarks`. NAME is that of the repository whose commits are measured: the working one, or a
checkout of ExecuTorch. asv's series depend on machine class, Python and parameters only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import harness
from harness.errors import HarnessError, NotInstalledError
from harness.files import partial_file, private_folder
from harness.results.machine import this_machine

BRANCH = "benchmarks"
FOLDER = ".asv"
BENCHMARKS = Path(__file__).parent
ROOT = Path(harness.__file__).resolve().parents[1]
PLUGIN = ".harness.suites.asv_plugin"  # asv imports a module whose name begins so
SESSION = "session"  # our key in asv's result files
TIMEOUT = 3600.0  # seconds for one benchmark
# Points before and after a step: noise is known from points alone. A size has none.
ENOUGH, ENOUGH_OF_A_SIZE = (3, 2), (1, 1)
_NOT_OF_A_CHIP = re.compile(r"\((R|TM)\)|\b(CPU|Processor|Apple|\d+-Core)\b|@.*", re.IGNORECASE)


class Repository:
    """A git repository, and the history of its commits' results in the working repository."""

    def __init__(self, path: Path, keeper: Path | None = None) -> None:
        """`path` is anywhere in it; `keeper` keeps the results, by default the repository itself.

        Raises HarnessError outside a git repository, and for one without a commit.
        """
        self.root = _top(path)
        self.keeper = self.root if keeper is None else _top(keeper)
        self.folder = self.keeper / FOLDER / self.name
        self.results, self.page = self.folder / "results", self.folder / "html"

    @cached_property
    def name(self) -> str:
        """The last part of its origin's address; a clone in another folder has the same."""
        origin = git(self.root, "config", "remote.origin.url", check=False)
        last = re.split(r"[/:]", origin.rstrip("/"))[-1].removesuffix(".git")
        return re.sub(r"[^\w.-]", "-", last or self.root.name)

    @property
    def commit(self) -> str:
        """The commit that is checked out."""
        return git(self.root, "rev-parse", "HEAD")

    def require_clean(self) -> None:
        """Raise HarnessError when a tracked file differs from the commit."""
        changed = git(self.root, "status", "--porcelain", "--untracked-files=no").splitlines()
        if changed:
            first = changed[0].split(maxsplit=1)[1]
            raise HarnessError(
                f"{self.root}: {len(changed)} files differ from commit {self.commit[:8]}, under "
                f"which the results would be filed ({first}); commit them, or give --dry-run"
            )

    def configuration(self, **more: object) -> Path:
        """Write asv's configuration of this history; return its path."""
        address = git(self.root, "config", "remote.origin.url", check=False)
        github = re.search(r"github\.com[:/](.+?)(\.git)?/?$", address)
        settings = {
            "version": 1,
            "project": self.name,
            "repo": str(self.root),
            "branches": ["HEAD"],
            "environment_type": "installed",
            "plugins": [PLUGIN],
            "benchmark_dir": str(BENCHMARKS),
            "env_dir": str(self.folder / "env"),
            "results_dir": str(self.results),
            "html_dir": str(self.page),
            "default_benchmark_timeout": TIMEOUT,
            **more,
        }
        if github:
            settings["show_commit_url"] = f"https://github.com/{github[1]}/commit/"
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.folder / "asv.conf.json"
        write_json(path, settings)
        return path

    def result_files(self, machine: str = "*") -> Iterator[Path]:
        """Yield the files of measured commits."""
        for path in sorted(self.results.glob(f"{machine}/*.json")):
            if path.name != "machine.json":
                yield path

    def note(self, machine: str, session: Mapping[str, object]) -> None:
        """Add versions, machine and options to the results of the checked-out commit."""
        for path in self.result_files(machine):
            record = read_json(path)
            if record["commit_hash"] == self.commit and SESSION not in record:
                write_json(path, {**record, SESSION: session})

    def restore(self) -> None:
        """Fetch from the branch what this folder lacks; a result that is here is the newer one."""
        for ref in self._refs():
            for name in _files(self.keeper, ref, f"{self.name}/"):
                path = self.results / name.removeprefix(f"{self.name}/")
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with partial_file(path) as partial:
                        partial.write_bytes(_show(self.keeper, f"{ref}:{name}"))
        self._unite_parameters()

    def _refs(self) -> list[str]:
        """Return the branch here and at the origin, those that exist."""
        refs = (f"refs/heads/{BRANCH}", f"refs/remotes/origin/{BRANCH}")
        return [
            ref for ref in refs if git(self.keeper, "rev-parse", "-q", "--verify", ref, check=False)
        ]

    def _unite_parameters(self) -> None:
        """Let asv's list of benchmarks name the parameters of all results.

        asv writes those of its last run there, and then publishes no others.
        """
        path = self.results / "benchmarks.json"
        if not path.exists():
            return
        benchmarks = read_json(path)
        for file in self.result_files():
            record = read_json(file)
            column = record["result_columns"].index("params")
            for name, row in record["results"].items():
                if isinstance(benchmark := benchmarks.get(name), dict) and len(row) > column:
                    for ours, theirs in zip(benchmark["params"], row[column] or [], strict=False):
                        ours += [value for value in theirs if value not in ours]
        write_json(path, benchmarks)

    def keep(self) -> str:
        """Commit the results to the branch `benchmarks`, without a work tree; return the commit.

        Nothing is pushed. The branch of the origin, if it has other commits, is merged.
        """
        self.restore()
        refs = self._refs()
        with private_folder("harness-index") as folder:
            index = {"GIT_INDEX_FILE": str(folder / "index"), **_identity(self.keeper)}
            for ref in reversed(refs):
                entries = _run(self.keeper, ("ls-tree", "-r", "-z", ref)).stdout
                lines = [
                    b"%s %s\t%s" % (mode, digest, name)
                    for mode, _, digest, name in (
                        (*entry.partition(b"\t")[0].split(), entry.partition(b"\t")[2])
                        for entry in entries.split(b"\0")
                        if entry
                    )
                ]
                _run(self.keeper, ("update-index", "-z", "--index-info"), index, b"\0".join(lines))
            for path in sorted(self.results.rglob("*.json")):
                digest = git(self.keeper, "hash-object", "-w", str(path))
                name = f"{self.name}/{path.relative_to(self.results).as_posix()}"
                entry = f"100644,{digest},{name}"
                git(self.keeper, "update-index", "--add", "--cacheinfo", entry, variables=index)
            tree = git(self.keeper, "write-tree", variables=index)
            tips = list(dict.fromkeys(git(self.keeper, "rev-parse", ref) for ref in refs))
            if (
                tips
                and git(self.keeper, "rev-parse", f"{tips[0]}^{{tree}}") == tree
                and len(tips) == 1
            ):
                commit = tips[0]
            else:
                parents = [word for tip in tips for word in ("-p", tip)]
                text = f"Results of {self.name} at {self.commit[:12]}"
                commit = git(
                    self.keeper, "commit-tree", tree, *parents, "-m", text, variables=index
                )
        git(self.keeper, "update-ref", f"refs/heads/{BRANCH}", commit)
        return commit


@dataclass(frozen=True)
class Regression:
    """An upward step of a series that later commits did not take back.

    `commits` are those between which it lies: the second is the first slow one, and the first is
    None when it is its parent. `session` says what else changed with it.
    """

    series: str
    machine: str
    before: float
    after: float
    unit: str
    commits: tuple[str | None, str]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """What the steps of a history say, over `series`, of which `compared` have points enough.

    `unconfirmed` are steps of a series whose ratio to the control has none: the machine changed.
    """

    regressions: tuple[Regression, ...]
    unconfirmed: tuple[Regression, ...]
    series: int
    compared: int
    unknown: int  # commits with results that the repository does not have


def publish(repository: Repository, **settings: object) -> Judged:
    """Write the page of a history, and return the regressions that it shows.

    Raises HarnessError when there are no results.
    """
    repository.restore()
    if not any(repository.result_files()):
        raise HarnessError(
            f"{repository.results}: there are no results, nor on a branch {BRANCH}; measure first, "
            f"or fetch the branch: git fetch origin {BRANCH}"
        )
    config = repository.configuration(**settings)
    run_asv(["publish", "--no-pull", "--config", str(config)])
    return _judge(repository)


def _judge(repository: Repository) -> Judged:
    index = read_json(repository.page / "index.json")
    commits = {int(number): commit for number, commit in index["revision_to_hash"].items()}
    points = _points(repository.page)
    steps = {
        (path, number): (name, jumps)
        for name, path, _, number, _, _, jumps in read_json(repository.page / "regressions.json")[
            "regressions"
        ]
    }
    sessions = _sessions(repository)
    found: dict[bool, list[Regression]] = {True: [], False: []}
    for (path, number), (name, jumps) in steps.items():
        benchmark = name.partition("(")[0]
        if "Ratio.track_" in benchmark:
            continue  # the figure has a step of its own, or only the control changed
        ratio = benchmark.replace(".track_", "Ratio.track_")
        control = (path.replace(benchmark, ratio), number)
        confirmed = control in steps or control not in points
        machine = next(p[8:] for p in path.split("/") if p.startswith("machine-"))
        for first, second, before, after in jumps:
            earlier_points = sum(revision < second for revision in points[path, number])
            later_points = len(points[path, number]) - earlier_points
            least = _enough(benchmark)
            if earlier_points < least[0] or later_points < least[1]:
                continue
            known = [n for n, c in commits.items() if n < second and (machine, c) in sessions]
            # asv leaves the first out when it is the parent of the second.
            pair = None if first is None else commits[first], commits[second]
            earlier = sessions.get((machine, commits[max(known)])) if known else None
            changed = _changes(earlier, sessions.get((machine, pair[1])))
            unit = index["benchmarks"][benchmark]["unit"]
            found[confirmed].append(
                Regression(name, machine, before, after, unit, pair, tuple(changed))
            )
    measured = {read_json(path)["commit_hash"] for path in repository.result_files()}
    return Judged(
        tuple(found[True]),
        tuple(found[False]),
        len(points),
        sum(len(found) >= sum(_enough(path)) for (path, _), found in points.items()),
        len(measured - set(commits.values())),
    )


def _points(page: Path) -> dict[tuple[str, int], list[int]]:
    """Return the revisions of each series' points, by its graph and its number there."""
    found: dict[tuple[str, int], list[int]] = {}
    for path in (page / "graphs").glob("branch-*/**/*.json"):
        graph = path.relative_to(page).as_posix()
        for revision, values in read_json(path) if path.stem != "summary" else ():
            for number, value in enumerate(values if isinstance(values, list) else [values]):
                if value is not None:
                    found.setdefault((graph, number), []).append(revision)
    return found


def _enough(benchmark: str) -> tuple[int, int]:
    """Return how many points a step needs before and after it."""
    return ENOUGH_OF_A_SIZE if ".Size" in benchmark else ENOUGH


def _sessions(repository: Repository) -> dict[tuple[str, str], Mapping[str, Any]]:
    records = ((path.parent.name, read_json(path)) for path in repository.result_files())
    return {(m, record["commit_hash"]): record.get(SESSION, {}) for m, record in records}


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what else two sessions differ in: versions and the machine's own description."""
    for group in ("versions", "machine"):
        ours, theirs = ((session or {}).get(group, {}) for session in (before, after))
        for name in ours:
            if name in theirs and ours[name] != theirs[name]:
                yield f"{name} {ours[name]} -> {theirs[name]}"


def machine_class() -> str:
    """Return the class of this machine, of its system and chip: `macos-15-m1`."""
    machine = this_machine()
    system = {"Darwin": f"macos-{machine['release'].partition('.')[0]}"}.get(
        machine["os"], machine["os"]
    )
    chip = _NOT_OF_A_CHIP.sub(" ", machine["cpu"])
    if not re.search(r"\w", chip) or chip.strip() == "unknown":
        chip = platform.machine()
    return re.sub(r"[^a-z0-9.]+", "-", f"{system} {chip}".lower()).strip("-")


def system_build() -> str:
    """Return the build of the operating system: `24D81` of macOS, that of the kernel elsewhere."""
    if sys.platform != "darwin":
        return platform.version()
    command = ["sw_vers", "-buildVersion"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def register_machine(name: str) -> None:
    """Tell asv of a machine that is its class alone.

    asv would name a series by the host, the kernel, the memory and the number of processors, too.
    """
    from asv.machine import MachineCollection

    MachineCollection.save(name, {"machine": name})


def run_asv(words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Run asv; raises HarnessError when it fails, NotInstalledError where it is missing."""
    require_asv()
    # asv runs the benchmarks without PYTHONPATH; they must import this harness.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "ASV_PYTHONPATH": path, **(variables or {})}
    command = [sys.executable, "-m", "asv", *words]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise HarnessError(
            f"asv {words[0]} ended with status {done.returncode}: a benchmark failed, or asv could "
            "not start; its output above says why"
        )


def require_asv() -> None:
    """Raise NotInstalledError where asv is missing."""
    from importlib.util import find_spec

    if find_spec("asv") is None:
        raise NotInstalledError("asv is not installed; pip install 'coreml-llm-harness[bench]'")


def git(
    folder: Path, *words: str, check: bool = True, variables: Mapping[str, str] | None = None
) -> str:
    """Return git's output, stripped; without `check`, "" when it fails. Raises HarnessError."""
    done = _run(folder, words, variables, check=check)
    return "" if done.returncode else done.stdout.decode("utf-8", "replace").strip()


def _run(
    folder: Path,
    words: Sequence[str],
    variables: Mapping[str, str] | None = None,
    given: bytes | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            input=given,
            capture_output=True,
            env={**os.environ, **(variables or {})},
            check=False,
        )
    except OSError as error:
        raise HarnessError(f"git cannot be run ({error.strerror})") from None
    if check and done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise HarnessError(f"{folder}: git {words[0]} failed: {reason[-1]}")
    return done


def _top(path: Path) -> Path:
    top = git(path, "rev-parse", "--show-toplevel", check=False)
    if not top or not git(Path(top), "rev-parse", "-q", "--verify", "HEAD", check=False):
        raise HarnessError(
            f"{path}: is not in a git repository with a commit; results are filed by commit"
        )
    return Path(top)


def _files(folder: Path, ref: str, below: str) -> list[str]:
    names = _run(folder, ("ls-tree", "-r", "-z", "--name-only", ref, below)).stdout
    found = [name.decode("utf-8", "replace") for name in names.split(b"\0") if name]
    return [name for name in found if name.endswith(".json")]


def _show(folder: Path, thing: str) -> bytes:
    return _run(folder, ("cat-file", "blob", thing)).stdout


def _identity(folder: Path) -> dict[str, str]:
    """Return who commits where git does not know: a CI machine has no user, but a host name."""
    if git(folder, "config", "user.email", check=False):
        return {}
    return {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "coreml-llm-harness"), ("EMAIL", "harness@localhost"))
    }


def read_json(path: Path) -> Any:
    """Return a JSON file's value; raises HarnessError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: cannot be read as JSON ({error}); delete it") from None


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    with partial_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
