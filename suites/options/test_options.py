"""Each option of each exporter: it changes what it promises, is reported as ignored, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.checks import Check, run_check
from harness.errors import HarnessError, NotInstalledError
from harness.export.environments import EXECUTORCH, INSTALLED, placed
from harness.export.exporters import Exporter
from harness.export.options import ExportOptions
from harness.fixtures.cache import exported, fixture
from harness.models.config import load_params
from harness.results import Case
from harness.suites.options import backend
from harness.suites.options.backend import Backend
from harness.suites.options.judge import check_of, equal_exports
from harness.suites.options.traces import MODEL, SINGLE, TRACES, Trace


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: f"{trace.name}-{trace.base.mode}")
def test_an_option_leaves_its_trace(
    record: Callable[[Case], None], exporter: Exporter, exporter_name: str, trace: Trace
) -> None:
    config = load_params(fixture(MODEL).params)
    record(
        run_check(
            check_of(trace, config),
            lambda: lambda options: exported(MODEL, options, exporter=exporter),
            suite="options",
            fixture=exporter_name,
            mode=trace.base.mode,
        )
    )


@pytest.mark.parametrize("mode", ["single", "multifunction"])
def test_two_exports_of_one_input_are_equal(
    record: Callable[[Case], None],
    exporter: Exporter,
    exporter_name: str,
    mode: str,
    tmp_path: Path,
) -> None:
    """The second is a process of its own, with another seed of Python's hashes."""
    options = replace(SINGLE, mode=mode)

    def both() -> tuple[Path, Path]:
        first = exported(MODEL, options, exporter=exporter)
        return first, _export_again(exporter, options, tmp_path / first.name)

    check: Check[tuple[Path, Path]] = Check("two exports", equal_exports)
    case = run_check(
        check,
        both,
        suite="options",
        fixture=exporter_name,
        mode=mode,
    )
    record(case)


@pytest.fixture(scope="session")
def backend_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Exporter], Backend]]:
    """Return the backend of an ExecuTorch, whose child process is kept."""
    opened: dict[str, Backend] = {}

    def get(exporter: Exporter) -> Backend:
        if exporter.kind != EXECUTORCH:
            raise NotInstalledError("only ExecuTorch has a backend with options of its own")
        if exporter.label not in opened:
            folder = tmp_path_factory.mktemp("backend")
            opened[exporter.label] = Backend(placed(exporter.place), folder)
        return opened[exporter.label]

    yield get
    for one in opened.values():
        one.close()


@pytest.mark.parametrize("row", backend.ROWS, ids=lambda row: row.name)
def test_an_option_of_the_backend_leaves_its_trace(
    record: Callable[[Case], None],
    exporter: Exporter,
    exporter_name: str,
    backend_of: Callable[[Exporter], Backend],
    row: backend.Row,
) -> None:
    record(
        run_check(
            backend.check_of(row),
            lambda: backend_of(exporter),
            suite="options",
            fixture=exporter_name,
            mode="backend",
        )
    )


def _export_again(exporter: Exporter, options: ExportOptions, output: Path) -> Path:
    source, place = fixture(MODEL), exporter.place.removeprefix(INSTALLED)
    words = {
        "--checkpoint": source.checkpoint,
        "--params": source.params,
        "--exporter": f"{exporter.kind}@{place}" if place else exporter.kind,
        "--mode": options.mode,
        "--input-len": options.input_len,
        "--max-context-len": options.max_context_len,
        "-o": output,
    }
    command = [sys.executable, "-m", "harness", "export"]
    command += [str(word) for pair in words.items() for word in pair]
    variables = {**os.environ, "PYTHONHASHSEED": "20261127"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise HarnessError(f"harness export ended with {done.returncode}: {done.stderr}")
    return output
