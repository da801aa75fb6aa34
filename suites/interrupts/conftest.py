"""The number of moments to try, a sample or `--every`, and the small model to export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.suites.interrupts.process import WarmProcess


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("interrupts").addoption(
        "--every", action="store_true", help="every moment of every command, and real exports"
    )


@pytest.fixture(scope="session")
def every(pytestconfig: pytest.Config) -> bool:
    """Return whether `--every` asks for all moments."""
    return bool(pytestconfig.getoption("--every"))


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[WarmProcess]:
    """Yield a warm process, whose temporary files go below `tmp_path / "tmp"`."""
    (tmp_path / "tmp").mkdir()
    process = WarmProcess(tmp_path / "tmp")
    yield process
    process.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with checkpoint.pth and params.json."""
    from harness.fixtures.small_llama import write_model

    folder: Path = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder
