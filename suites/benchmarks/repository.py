"""A git repository whose commits are measured, and the branch that keeps the results.

The results lie in the folder `.asv/NAME` of the working repository, and below `NAME/` on its branch
`benchmarks`. NAME is that of the repository whose commits are measured: the working one, or a
checkout of ExecuTorch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import partial_file, private_folder

BRANCH = "benchmarks"
FOLDER = ".asv"
BENCHMARKS = Path(__file__).parent
PLUGIN = ".harness.suites.asv_plugin"  # asv imports a module whose name begins so
SESSION = "session"  # our key in asv's result files
TIMEOUT = 3600.0  # seconds for one benchmark


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

    def note(self, machine: str, session: Mapping[str, object]) -> int:
        """Add versions, machine and options to the new results of the checked-out commit.

        Returns how many figures these hold.
        """
        figures = 0
        for path in self.result_files(machine):
            record = read_json(path)
            if record["commit_hash"] == self.commit and SESSION not in record:
                write_json(path, {**record, SESSION: session})
                for values, *_ in record["results"].values():
                    figures += sum(value == value and value is not None for value in values or ())
        return figures

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
            for ref in reversed(refs):  # the later one's files replace the earlier one's
                entries = _run(self.keeper, ("ls-tree", "-r", "-z", ref)).stdout
                _run(self.keeper, ("update-index", "-z", "--index-info"), index, entries)
            for path in sorted(self.results.rglob("*.json")):
                digest = git(self.keeper, "hash-object", "-w", str(path))
                name = f"{self.name}/{path.relative_to(self.results).as_posix()}"
                entry = f"100644,{digest},{name}"
                git(self.keeper, "update-index", "--add", "--cacheinfo", entry, variables=index)
            tree = git(self.keeper, "write-tree", variables=index)
            tips = list(dict.fromkeys(git(self.keeper, "rev-parse", ref) for ref in refs))
            if len(tips) == 1 and git(self.keeper, "rev-parse", f"{tips[0]}^{{tree}}") == tree:
                return tips[0]
            parents = [word for tip in tips for word in ("-p", tip)]
            text = f"Results of {self.name} at {self.commit[:12]}"
            words = ("commit-tree", tree, *parents, "-m", text)
            commit = git(self.keeper, *words, variables=index)
        git(self.keeper, "update-ref", f"refs/heads/{BRANCH}", commit)
        return commit


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
