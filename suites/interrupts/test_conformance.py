"""`kill -9` at random moments of a conformance run: the next run gives the verdict (`--every`).

The killed run starts with an empty cache, so that many moments are those at which it makes a model
or an export. Afterwards, the cache holds what that of an undisturbed run holds, and nothing else.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.results import Run, read_run
from harness.suites.interrupts.process import ROOT

MOMENTS = 50
WORDS = ("conformance", "--exporter", "coreml", "--mode", "single", "--runtime", "mil:widen", "-q")


@dataclass(frozen=True)
class Place:
    """The folders of a run: its cache, its results and its temporary files."""

    folder: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start a run as a process."""
        environment: Mapping[str, str] = {
            **os.environ,
            "HARNESS_CACHE": str(self.folder / "cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *WORDS, "--results", str(self.folder / "results")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def left(self) -> list[str]:
        """Return the paths of all files in the cache and the results, locks apart."""
        found = [*(self.folder / "cache").rglob("*"), *(self.folder / "results").rglob("*")]
        return sorted(str(p.relative_to(self.folder)) for p in found if p.suffix != ".lock")

    def run(self) -> Run:
        """Return the results."""
        return read_run(self.folder / "results" / "conformance.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, every: bool) -> tuple[Place, float]:
    """Return the place of an undisturbed run, and the seconds that it took."""
    if not every:
        pytest.skip("an hour of conformance runs; `--every` runs them")
    place, start = Place(tmp_path_factory.mktemp("whole")), time.monotonic()
    assert place.start().wait() == 0
    return place, time.monotonic() - start


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_killed_run_does_not_change_the_verdict_of_the_next(
    whole: tuple[Place, float], number: int, tmp_path: Path
) -> None:
    expected, lasts = whole
    place = Place(tmp_path)
    moment = random.Random(number).uniform(0.0, 1.0) * lasts
    process = place.start()
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"killed after {moment:.1f} of {lasts:.1f} s: {place.left()}")
    assert place.start().wait() == 0
    wanted, found = expected.run(), place.run()
    assert found.footer.passed and found.footer.counts == wanted.footer.counts
    assert found.footer.comparisons == wanted.footer.comparisons
    assert place.left() == expected.left()
