"""A miniature suite, judged like coremltools' own: in a worker of xdist, with the stand-in."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.suites.operators import beside

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MINIATURE = HERE / "miniature" / "iOS15"
PLUGIN = ("-c", str(ROOT / "suites/operators/pytest.ini"), "-p", "harness.suites.operators.plugin")


def start(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the miniature once; return the process, and the folder with its results."""
    results = tmp_path_factory.mktemp("results")
    files = [str(MINIATURE / name) for name in ("mini_ops.py", "test_image_resizing.py")]
    shim = ("-m", "harness", "shim", "--policy", "widen", "--", "pytest", *PLUGIN)
    done = start(*shim, "-n", "1", "--results", str(results), *files)
    return done, results / "operators"


def test_every_end_is_counted_in_its_row(run):
    done, folder = run
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]
    lines = [json.loads(line) for line in (folder / "operators.jsonl").read_text().splitlines()]
    counts = defaultdict(dict)
    for case in lines[1:-1]:
        assert case["runtime"] == "mil:widen"
        counts[case["mode"], case["check"]] = {n: c for n, c in case["facts"].items() if c}
    assert counts == {
        ("-", "iOS15/mini_ops.py"): {
            "predicted": 6,
            "passed": 3,
            "at_fp16": 1,
            "no_arrays": 1,
            "failed": 3,
            "broken": 1,
            "upstream": 1,  # the sample has one of the two
            "no_prediction": 1,
            "skipped": 1,
        },
        # three configurations in fp32, of which one is the sample
        ("iOS16", "iOS15/mini_ops.py"): {"predicted": 1, "passed": 1},
        # listed: one fails, as it must; one passes, which is a failure
        ("-", "iOS15/test_image_resizing.py"): {"predicted": 1, "failed": 1, "listed": 1},
    }


def test_failures_are_named_with_their_problem(run):
    text = (run[1] / "failures.txt").read_text()
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        "iOS15/mini_ops.py::test_wrong",
        "iOS15/mini_ops.py::test_wrong_even_to_fp16_resolution",
        "iOS15/mini_ops.py::test_broken_before_a_model_is_loaded",
        "iOS15/mini_ops.py::test_that_cannot_load_its_model",
        "iOS15/test_image_resizing.py::TestResample::test_builder_to_backend_smoke",
    ]
    assert re.search(r"1\.10(0999|1\b)", text)  # numpy 2.4 prints more digits
    assert "only an ML Program" in text
    assert "but it passes: remove the entry" in text


def test_the_table_is_shown_and_kept(run):
    done, folder = run
    table = (folder / "opsets.txt").read_text()
    assert table in done.stdout and "50.00%" in table
    assert (folder / "index.html").stat().st_size > 1000


@pytest.mark.linux
def test_without_the_stand_in_it_does_not_start():
    done = start("-m", "harness.suites.operators")
    assert done.returncode == 2
    assert "harness shim --policy widen -- python -m harness.suites.operators" in done.stderr


@pytest.mark.linux
def test_core_ml_itself_is_judged_on_a_mac_alone():
    done = start("-m", "harness.suites.operators", "--native")
    assert done.returncode == 2 and "this is not a Mac; omit it" in done.stderr


def test_our_executor_is_compared_with_core_ml_per_operation():
    """Core ML's part is taken by a model that doubles one result: the comparison must see it."""
    found = beside.Comparison(), beside.Comparison("relu", "fp32", 4, 1e-6)
    wrong = beside.Beside.__new__(beside.Beside)
    wrong._comparison, wrong._states = found[0], {}
    wrong._model = SimpleNamespace(predict=lambda values: {"y": np.array([1.0, 2.0])})
    found[0].operation = "add"
    wrong.predict({}, {"y": np.array([1.0, 4.0])})
    add, relu = beside.cases(found)
    assert (add.outcome, relu.outcome) == ("fail", "pass")
    assert add.fixture == "add" and "differs from Core ML by 0.5" in add.reason
    wrong.predict({}, {"y": np.array([np.nan, 4.0])})
    assert found[0].error == np.inf
