"""The option of the suite: a folder that keeps its result files."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs", type=Path, help="keep the result files here, and read those there")
