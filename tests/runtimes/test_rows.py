"""A runtime is one row: a toy runtime is known everywhere by it, with the bounds that it says."""

import json

import pytest

from harness.checks.accuracy import WIDE_TOLERANCE, tolerances
from harness.cli import main
from harness.errors import HarnessError
from harness.fixtures.cache import exported, fixture
from harness.runtimes import RUNTIMES, RuntimeRow, get_runtime, runtime_row
from harness.runtimes.mil import MilRuntime
from harness.subject import Subject


class Toy(MilRuntime):
    """Our executor under another name."""

    def __init__(self):
        super().__init__("widen")
        self.name = "toy"


@pytest.fixture
def toy(monkeypatch):
    """toy(**fields) adds the row of a toy runtime."""

    def add(**fields):
        monkeypatch.setitem(RUNTIMES, "toy", RuntimeRow("toy", lambda: Toy, **fields))

    return add


@pytest.fixture(scope="module")
def artifact():
    model = fixture("tiny")
    return exported("tiny", model.options)


def test_check_runs_on_a_runtime_that_one_row_adds(toy, artifact, capsys):
    toy(rounds=False, in_check=True)
    assert main(["check", str(artifact), "--check", "parity", "--json"]) == 0
    cases = {case["runtime"]: case for case in json.loads(capsys.readouterr().out)}
    assert list(cases) == ["mil:strict", "mil:widen", "toy"]
    assert cases["toy"]["comparisons"] == cases["mil:widen"]["comparisons"] > 0
    assert cases["toy"]["figures"]["decode error"]["bound"] == WIDE_TOLERANCE


def test_the_bounds_of_a_runtime_that_rounds_are_calibrated(toy, artifact):
    toy(rounds=True)
    subject = Subject(artifact)
    assert tolerances(subject, "toy") == tolerances(subject, "mil:strict")
    assert min(tolerances(subject, "toy").values()) > 10 * WIDE_TOLERANCE


def test_a_kind_alone_means_its_usual_option():
    kinds = {row.kind for row in RUNTIMES.values()}
    assert [runtime_row(kind).name for kind in sorted(kinds)] == [
        "coreml:cpu_and_ne",
        "eager:fp32",
        "executorch",
        "mil:widen",
    ]
    assert [runtime_row(name).name for name in ("mil:", "executorch:")] == [
        "mil:widen",
        "executorch",
    ]


def test_an_unknown_runtime_is_refused_with_the_names_there_are():
    with pytest.raises(HarnessError, match="no runtime 'mil:wide'; choose from mil:strict, "):
        get_runtime("mil:wide")
