"""A runtime is one row: by it, all parts know a toy runtime and its bounds."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import runtimes
from harness.checks.accuracy import WIDE_TOLERANCE, tolerances
from harness.cli import main
from harness.errors import HarnessError
from harness.fixtures.cache import exported, fixture
from harness.runtimes import (
    BASELINE,
    REFERENCE,
    RUNTIMES,
    RuntimeRow,
    default_runtime,
    get_runtime,
    runtime_row,
)
from harness.runtimes.mil import MilRuntime
from harness.subject import Subject

ROOT = Path(__file__).parents[2]


class Toy(MilRuntime):
    """Our executor under another name."""

    def __init__(self, policy):
        super().__init__(policy)
        self.name = "toy"


@pytest.fixture
def toy(monkeypatch):
    """toy(**fields) adds the row of a toy runtime, which rounds if its row says so."""

    def add(rounds, **fields):
        make = partial(Toy, "strict" if rounds else "widen")
        row = RuntimeRow("toy", lambda: make, rounds, **fields)
        monkeypatch.setitem(RUNTIMES, "toy", row)

    return add


@pytest.fixture(scope="module")
def artifact():
    model = fixture("tiny")
    return exported("tiny", model.options)


def checked(capsys, *words):
    """Return the cases of a whole `harness check` by check and runtime; each must pass or skip."""
    assert main(["check", *map(str, words), "--json"]) == 0
    _, *cases, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert {case["outcome"] for case in cases} <= {"pass", "skip"}
    return {(case["check"], case["runtime"]): case for case in cases}


@pytest.mark.parametrize(("rounds", "like"), [(False, "mil:widen"), (True, "mil:strict")])
def test_every_check_runs_on_a_runtime_that_one_row_adds(toy, artifact, capsys, rounds, like):
    toy(rounds)
    cases = checked(capsys, artifact, "--runtime", "toy", "--runtime", like)
    executed = {check for check, runtime in cases if runtime == "toy"}
    assert "parity" in executed and executed == {c for c, runtime in cases if runtime == like}
    for check in executed:
        toys, ours = cases[check, "toy"], cases[check, like]
        assert toys["comparisons"] == ours["comparisons"] > 0
        assert toys["figures"] == ours["figures"]  # with the same bounds
    bound = cases["parity", "toy"]["figures"]["decode error"]["bound"]
    assert bound > 10 * WIDE_TOLERANCE if rounds else bound == WIDE_TOLERANCE


@pytest.mark.linux
def test_check_runs_on_it_unasked_where_its_row_says_so(toy, artifact, capsys):
    toy(rounds=False, in_check=True)
    cases = checked(capsys, artifact, "--check", "parity")
    assert [runtime for _, runtime in cases] == ["mil:strict", "mil:widen", "toy"]


LISTS = """
from harness.runtimes import RUNTIMES, RuntimeRow
from harness.runtimes.mil import MilRuntime
RUNTIMES["toy"] = RuntimeRow("toy", lambda: MilRuntime, False, in_conformance=True, timed=True)
from harness.suites.benchmarks.language_models import PerRuntime
from harness.suites.conformance.conftest import DEFAULT_RUNTIMES
print(DEFAULT_RUNTIMES[-1], PerRuntime.params[-1][-1])
"""


def test_conformance_and_benchmarks_run_on_it_where_its_row_says_so():
    command = [sys.executable, "-c", LISTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "toy toy\n", done.stderr


def test_the_default_is_the_available_runtime_that_is_preferred_most(monkeypatch):
    available = {"coreml:cpu_only", "mil:widen"}

    def make(name):
        absent = None if name in available else "it is not here"
        return SimpleNamespace(unavailable=lambda: absent)

    monkeypatch.setattr(runtimes, "get_runtime", make)
    assert default_runtime() == "coreml:cpu_only"
    available.discard("coreml:cpu_only")
    assert default_runtime() == "mil:widen"
    available.add("coreml:cpu_and_ne")
    assert default_runtime() == "coreml:cpu_and_ne"


def test_one_runtime_is_the_reference_and_one_the_baseline():
    rows = RUNTIMES.values()
    assert [row.name for row in rows if row.reference] == [REFERENCE] == ["mil:widen"]
    assert [row.name for row in rows if row.baseline] == [BASELINE] == ["eager:fp32"]


def test_the_bounds_of_a_runtime_that_rounds_are_calibrated(toy, artifact):
    toy(rounds=True)
    subject = Subject(artifact)
    assert tolerances(subject, "toy") == tolerances(subject, "mil:strict")
    assert min(tolerances(subject, "toy").values()) > 10 * WIDE_TOLERANCE


def test_a_kind_alone_means_its_usual_option():
    assert [runtime_row(kind).name for kind in ("coreml", "eager", "mil")] == [
        "coreml:cpu_and_ne",
        "eager:fp32",
        "mil:widen",
    ]
    for kind in {row.kind for row in RUNTIMES.values()}:
        assert runtime_row(kind).kind == kind
    assert [runtime_row(name).name for name in ("mil:", "executorch:")] == [
        "mil:widen",
        "executorch",
    ]


def test_an_unknown_runtime_is_refused_with_the_names_there_are():
    with pytest.raises(
        HarnessError, match=r"no runtime 'mil:wide'; did you mean 'mil:widen'\? choose "
    ):
        get_runtime("mil:wide")
