"""`kill -9` at random moments of a conformance run: the next run gives the verdict (`--every`).

The killed run starts with an empty cache, so that many moments are those at which it makes a model
or an export. Afterwards the cache, the results and the folder of temporary files hold what they
hold after an undisturbed run, and nothing else.

A warm process forks for each run, so that moments are those of the run and not of the imports
before it.
"""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.results import Run, read_run
from harness.suites.interrupts.moments import Request
from harness.suites.interrupts.process import Ended, WarmProcess
from harness.suites.interrupts.test_interrupts import KEPT_BY_TORCH

MOMENTS = 50
_SURELY_KILLED = 0.8  # the share of a run up to which it cannot have ended: runs vary in length
OPTIONS = ("--exporter", "coreml", "--mode", "single", "--runtime", "mil:widen", "-q")
FEW = ("-k", "parity or references or types")  # one check that executes, two that do not


@dataclass(frozen=True)
class Place:
    """The folders of a run: its cache, its results and its temporary files."""

    folder: Path

    def run_in(self, process: WarmProcess, seconds: float | None = None) -> Ended:
        """Run the suite to its end, or kill it after some seconds."""
        folders = {name: self.folder / name for name in ("cache", "tmp", "results")}
        folders["tmp"].mkdir(parents=True, exist_ok=True)
        environment = {"HARNESS_CACHE": str(folders["cache"]), "TMPDIR": str(folders["tmp"])}
        words = ("conformance", *OPTIONS, *FEW, "--results", str(folders["results"]))
        return process.run(Request(words, seconds=seconds, environment=environment))

    def left(self) -> list[str]:
        """Return the paths of all files and folders, locks apart."""
        found = [path.relative_to(self.folder) for path in self.folder.rglob("*")]
        return sorted(
            str(path)
            for path in found
            if path.suffix != ".lock" and not any(p.startswith(KEPT_BY_TORCH) for p in path.parts)
        )

    def run(self) -> Run:
        """Return the results."""
        return read_run(self.folder / "results" / "conformance.jsonl")


@pytest.fixture(scope="module")
def warm_runs(tmp_path_factory: pytest.TempPathFactory, every: bool) -> Iterator[WarmProcess]:
    """Yield a warm process that has run the suite once."""
    if not every:
        pytest.skip("minutes of conformance runs; `--every` runs them")
    process = WarmProcess(tmp_path_factory.mktemp("warm"))
    assert Place(tmp_path_factory.mktemp("first")).run_in(process).status == 0
    yield process
    process.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm_runs: WarmProcess) -> tuple[Place, float]:
    """Return the place of an undisturbed run, and the processor's seconds that it took."""
    place = Place(tmp_path_factory.mktemp("whole"))
    ended = place.run_in(warm_runs)
    assert ended.status == 0
    return place, ended.seconds


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_killed_run_does_not_change_the_verdict_of_the_next(
    whole: tuple[Place, float], warm_runs: WarmProcess, number: int, tmp_path: Path
) -> None:
    expected, lasts = whole
    place = Place(tmp_path)
    share = (number + random.Random(number).random()) / MOMENTS  # each part of the run gets one
    killed = place.run_in(warm_runs, share * lasts)
    print(f"{killed.status} after {share * lasts:.1f} of {lasts:.1f} s: {place.left()}")
    may_have_ended = share > _SURELY_KILLED
    assert killed.status == -signal.SIGKILL or (may_have_ended and killed.status == 0)
    assert place.run_in(warm_runs).status == 0
    wanted, found = expected.run(), place.run()
    assert found.footer.passed and found.footer.counts == wanted.footer.counts
    assert found.footer.comparisons == wanted.footer.comparisons
    assert place.left() == expected.left()
