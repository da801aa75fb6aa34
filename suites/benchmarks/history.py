"""The history of a repository's results: measured and published by asv, judged by its steps.

asv's series depend on machine class, Python and parameters only.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness.errors import HarnessError, NotInstalledError
from harness.results.machine import this_machine
from harness.suites.benchmarks.repository import BRANCH, SESSION, Repository, read_json

ROOT = Path(harness.__file__).resolve().parents[1]
FAILED_BENCHMARK = 2  # asv's exit status
# Points before and after a step: noise is known from points alone. A size has none.
ENOUGH, ENOUGH_OF_A_SIZE = (3, 2), (1, 1)
_NOT_OF_A_CHIP = re.compile(r"\((R|TM)\)|\b(CPU|Processor|Apple|\d+-Core)\b|@.*", re.IGNORECASE)


@dataclass(frozen=True)
class Regression:
    """An upward step of a series that later commits did not take back.

    `commits` are those between which it lies: the second is the first slow one, and the first is
    None when it is its parent. `changed` says what else did: versions, the machine.
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
    """Read what asv published; the steps of a ratio only confirm those of its figure."""
    index = read_json(repository.page / "index.json")
    published = read_json(repository.page / "regressions.json")["regressions"]
    commits = {int(number): commit for number, commit in index["revision_to_hash"].items()}
    points, sessions = _points(repository.page), _sessions(repository)
    stepped = {(path, number) for _, path, _, number, *_ in published}
    found: dict[bool, list[Regression]] = {True: [], False: []}
    for name, path, _, number, _, _, jumps in published:
        benchmark = name.partition("(")[0]
        if "Ratio.track_" in benchmark:
            continue
        control = (path.replace(benchmark, benchmark.replace(".track_", "Ratio.track_")), number)
        machine = next(part[8:] for part in path.split("/") if part.startswith("machine-"))
        for first, second, before, after in jumps:
            earlier = sum(revision < second for revision in points[path, number])
            least = _enough(benchmark)
            if earlier < least[0] or len(points[path, number]) - earlier < least[1]:
                continue
            known = [n for n, c in commits.items() if n < second and (machine, c) in sessions]
            last = sessions.get((machine, commits[max(known, default=second)]))
            regression = Regression(
                series=name,
                machine=machine,
                before=before,
                after=after,
                unit=index["benchmarks"][benchmark]["unit"],
                # asv leaves the first out when it is the parent of the second
                commits=(None if first is None else commits[first], commits[second]),
                changed=tuple(_changes(last, sessions.get((machine, commits[second])))),
            )
            found[control in stepped or control not in points].append(regression)
    measured = {read_json(path)["commit_hash"] for path in repository.result_files()}
    return Judged(
        tuple(found[True]),
        tuple(found[False]),
        len(points),
        sum(len(series) >= sum(_enough(path)) for (path, _), series in points.items()),
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


def run_asv(words: Sequence[str], variables: Mapping[str, str] | None = None) -> bool:
    """Run asv; return whether no benchmark failed.

    Raises HarnessError when asv itself fails, NotInstalledError where it is missing.
    """
    require_asv()
    # asv runs the benchmarks without PYTHONPATH; they must import this harness.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "ASV_PYTHONPATH": path, **(variables or {})}
    command = [sys.executable, "-m", "asv", *words]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode not in (0, FAILED_BENCHMARK):
        raise HarnessError(
            f"asv {words[0]} ended with status {done.returncode}; its output above says why"
        )
    return done.returncode == 0


def require_asv() -> None:
    """Raise NotInstalledError where asv is missing."""
    from importlib.util import find_spec

    if find_spec("asv") is None:
        raise NotInstalledError("asv is not installed; pip install 'coreml-llm-harness[bench]'")
