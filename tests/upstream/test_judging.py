"""The suite must detect each lie of a lying test, and pass an honest one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.results import Run, read_run

LYING = Path(__file__).with_name("lying.py")
SHIM = [sys.executable, "-m", "harness", "shim", "--"]
LISTED = """
[[impossible]]
test = "test_lying.py::TestLying::test_honest"
reason = "it is said to fail"

[[impossible]]
test = "test_lying.py::TestLying::test_wrong_number"
reason = "nobody knows the number"
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, mixed_program: Any) -> Any:
    """Return a function that runs the suite on the lying tests, with options of pytest."""
    import torch
    from executorch.exir import to_edge

    root = tmp_path_factory.mktemp("checkout")
    folder = root / "backends/apple/coreml/test"
    folder.mkdir(parents=True)
    shutil.copy(LYING, folder / "test_lying.py")

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    portable = root / "portable.pte"
    program = to_edge(torch.export.export(Double(), (torch.ones(2),))).to_executorch()
    portable.write_bytes(program.buffer)
    environment = os.environ | {"DELEGATED": str(mixed_program[0]), "PORTABLE": str(portable)}

    def run(*options: str) -> tuple[int, str, Run | None]:
        results = tmp_path_factory.mktemp("results")
        suite = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "harness.suites.upstream",
            "--source",
            str(root),
        ]
        command = [*SHIM, *suite, "--file", "test_lying.py", "--results", str(results), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        stream = results / "upstream/upstream.jsonl"
        output = done.stdout + done.stderr
        return done.returncode, output, read_run(stream) if stream.exists() else None

    return run


def by_test(run: Run) -> dict[str, Any]:
    return {case.check.rpartition("::")[2]: case for case in run.cases}


def test_each_lie_is_seen(suite: Any) -> None:
    status, output, run = suite()
    assert status == 1 and run is not None and not run.footer.passed, output
    cases = by_test(run)
    is_told = sys.platform != "darwin"  # a Mac's runtime does not tell which backend executed
    assert {name: case.outcome for name, case in cases.items()} == {
        "test_honest": "pass",
        "test_wrong_number": "fail",
        "test_never_executes_core_ml": "fail" if is_told else "pass",
        "test_leaves_out_an_assertion": "fail",
        "test_refused_where_it_should_be": "pass",
        "test_asks_no_runtime": "pass",
        "test_asserts_nothing": "skip",
    }
    assert is_told == ("never executed" in cases["test_never_executes_core_ml"].reason)
    assert "did not reach" in cases["test_leaves_out_an_assertion"].reason
    honest = cases["test_honest"]
    assert honest.facts["executions"] == 1 and honest.facts["runtime_assertions_reached"] == 2
    assert honest.comparisons == 3 + 2
    assert cases["test_refused_where_it_should_be"].facts["refusals"] == 1


@pytest.mark.slow
def test_a_listed_test_that_fails_is_skipped_and_one_that_passes_fails(
    suite: Any, tmp_path: Path
) -> None:
    listed = tmp_path / "impossible.toml"
    listed.write_text(LISTED)
    tests = "honest or wrong_number"
    status, output, run = suite("--impossible", str(listed), "-k", tests)
    assert status == 1 and run is not None, output
    cases = by_test(run)
    assert cases["test_wrong_number"].outcome == "skip"
    assert cases["test_wrong_number"].reason == "nobody knows the number"
    assert cases["test_honest"].outcome == "fail"
    assert "listed as impossible (it is said to fail), but it passes" in cases["test_honest"].reason


@pytest.mark.slow
def test_a_list_of_what_is_not_there_is_an_error(suite: Any, tmp_path: Path) -> None:
    listed = tmp_path / "impossible.toml"
    listed.write_text(LISTED.replace("test_honest", "test_gone"))
    status, output, run = suite("--impossible", str(listed))
    assert status == 4 and run is None
    assert "lists tests that are not there: test_lying.py::TestLying::test_gone" in output


@pytest.mark.slow
def test_a_run_that_executed_nothing_has_not_passed(suite: Any) -> None:
    status, output, run = suite("-k", "asks_no_runtime")
    assert status == 1 and run is not None, output


@pytest.mark.linux
def test_without_the_stand_in_nothing_is_run() -> None:
    command = [sys.executable, "-m", "harness.suites.upstream"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no stand-in for it" in done.stderr
