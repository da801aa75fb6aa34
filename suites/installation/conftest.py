"""The result stream of the suite, what is drawn from it, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.report import run_table, write_report
from harness.results import Header, Writer, read_run

_RESULTS = Path("results/installation")
_STREAM = pytest.StashKey[Writer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("install")
    group.addoption("--install-results", type=Path, default=_RESULTS, help="where results go")


@pytest.fixture(scope="session")
def stream(pytestconfig: pytest.Config) -> Iterator[Writer]:
    """The stream that cases are added to; it gets its footer when all have run."""
    writer = Writer(
        pytestconfig.getoption("install_results") / "installation.jsonl", Header.here({})
    )
    pytestconfig.stash[_STREAM] = writer
    yield writer
    writer.finish()
    write_report(read_run(writer.path), writer.path.parent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    writer = terminalreporter.config.stash.get(_STREAM, None)
    if writer is not None and writer.path.exists():
        terminalreporter.section("installed ExecuTorch")
        terminalreporter.write_line(run_table(read_run(writer.path), colours=False))
