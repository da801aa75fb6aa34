"""`harness check SUBJECT`, as a user types it: no outcome but pass, skip and known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from harness.results import Case, read_run
from harness.suites.healthy.subjects import BY_EXECUTORCH, BY_US, OF_USERS, write_project

ROOT = Path(__file__).resolve().parents[2]
MIN_PASSES = 10  # a check that skipped almost everything says nothing about the model


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


@pytest.mark.parametrize("subject", (*BY_US, *OF_USERS, *BY_EXECUTORCH))
def test_a_healthy_model_gets_no_complaint(
    record_judged: Callable[[Iterable[Case]], None], subject: str, project: Path, tmp_path: Path
) -> None:
    name = subject.partition("/")[0]
    command = [sys.executable, "-m", "harness", "check", subject, "--name", name, "--results"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, str(tmp_path)],
        cwd=project,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "check.jsonl").is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    cases = read_run(tmp_path / "check.jsonl").cases
    record_judged(cases)
    complaints = [
        f"{case.check} on {case.runtime}: {case.summary}" for case in cases if not case.passes
    ]
    assert not complaints and done.returncode == 0, "\n".join(complaints)
    assert sum(case.outcome == "pass" for case in cases) >= MIN_PASSES
