"""One commit's conformance on other processors and thread counts, and the gate between them.

`nox -s machines`; `-- --runs DIR` keeps the result files in a folder, and reads those that are
there. What this processor cannot execute is skipped.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.measure import compare_runs
from harness.results import Run, read_run
from harness.suites.machines.worsenings import WORSENINGS

ROOT = Path(__file__).resolve().parents[2]
# name -> environment, what the header must say of the machine, the processor's flag that it needs
MACHINES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "no vectors": ({"ATEN_CPU_CAPABILITY": "default"}, {"capability": "DEFAULT"}, ""),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2"}, {"capability": "AVX2"}, "avx2"),
    "avx512": ({"ATEN_CPU_CAPABILITY": "avx512"}, {"capability": "AVX512"}, "avx512f"),
    "one thread": ({"OMP_NUM_THREADS": "1"}, {"threads": 1}, ""),
    "two threads": ({"OMP_NUM_THREADS": "2"}, {"threads": 2}, ""),
}
QUIET = {"same", "skipped", "better"}
FOUND = {"regression", "changed"}


def can_execute(flag: str) -> bool:
    """Return whether this processor has a flag; PyTorch executes what it is told to."""
    info = Path("/proc/cpuinfo")
    return not flag or (info.exists() and flag in info.read_text(encoding="utf-8").split())


@pytest.fixture(scope="session")
def run_of(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Run]:
    """Return the run on a machine by its name, executed once."""
    folder = pytestconfig.getoption("runs") or tmp_path_factory.mktemp("runs")

    def run_of(name: str) -> Run:
        environment, machine, flag = MACHINES[name]
        if not can_execute(flag):
            pytest.skip(f"this processor has no {flag}")
        results = Path(folder, name.replace(" ", "-")).absolute()
        if not (results / "conformance.jsonl").exists():
            command = [sys.executable, "-m", "harness", "conformance", "--results", str(results)]
            done = subprocess.run(
                [*command, "-q", "-n", "0"],
                cwd=ROOT,
                env=os.environ | environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        run = read_run(results / "conformance.jsonl")
        assert machine.items() <= run.header.machine.items(), "the environment had no effect"
        return run

    return run_of


def test_every_figure_has_a_bound(run_of: Callable[[str], Run]) -> None:
    """Without one, a figure that moves by its noise would be a regression."""
    cases = run_of("one thread").cases
    unbounded = {name for case in cases for name, f in case.figures.items() if f.bound is None}
    assert unbounded == set() and any(case.figures for case in cases)


@pytest.mark.parametrize(("base", "head"), list(itertools.permutations(MACHINES, 2)))
def test_the_machine_makes_no_regression(
    run_of: Callable[[str], Run], base: str, head: str
) -> None:
    result = compare_runs(run_of(base), run_of(head))
    assert [metric for metric in result.metrics if metric.verdict not in QUIET] == []
    assert result.status == 0 and result.counts["same"] > 300


@pytest.mark.parametrize("name", WORSENINGS)
@pytest.mark.parametrize("head", MACHINES)
def test_what_is_worse_is_found_on_each_machine(
    run_of: Callable[[str], Run], name: str, head: str
) -> None:
    """Hold the worse run of one machine against the sound one of another."""
    worse, case = WORSENINGS[name](run_of(head))
    result = compare_runs(run_of("one thread"), worse)
    found = {(m.case, m.name.partition("@")[0]) for m in result.metrics if m.verdict in FOUND}
    assert result.status == 1 and (case, WORSENINGS[name].metric) in found
