"""`harness check`, as a user types it: no outcome but pass, skip and known, and true warnings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from harness.cli import main
from harness.results import Case, read_run
from harness.suites.healthy.other_models import OTHERS, complaints
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
    require_healthy(cases)
    assert done.returncode == 0


@pytest.mark.parametrize("name", OTHERS)
def test_a_healthy_model_of_another_kind_gets_no_complaint(
    record_judged: Callable[[Iterable[Case]], None], name: str, tmp_path: Path
) -> None:
    other = OTHERS[name]
    if name.endswith(".pte"):
        pytest.importorskip("executorch")
    other.write(tmp_path / name)
    reference = f"harness.suites.healthy.other_modules:{other.reference}"
    words = [str(tmp_path / name), "--name", name, "--reference", reference]
    status = main(["check", *words, "--results", str(tmp_path)])
    cases = read_run(tmp_path / "check.jsonl").cases
    record_judged(cases)
    require_healthy(cases)
    executed = [case for case in cases if (case.check, case.outcome) == ("outputs", "pass")]
    assert status == 0 and executed


def require_healthy(cases: Sequence[Case]) -> None:
    """Fail on a complaint, and on few passes."""
    assert not (found := list(complaints(cases))), "\n".join(found)
    assert sum(case.outcome == "pass" for case in cases) >= MIN_PASSES
