"""The pytest plugin of a rehearsal: it runs each test function with one of its parameters.

What a test may not do on a Mac rarely depends on its parameters. Conformance and the tests of the
runtimes run whole: they are what the lane is for, and the lines of the runtimes are counted.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_WHOLE = (_ROOT / "tests" / "runtimes", _ROOT / "suites" / "conformance")


def pytest_configure() -> None:
    """Leave the runs of pytest that a test starts as they are."""
    os.environ.pop("PYTEST_ADDOPTS", None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one of the parameters of each test function, always the same."""
    kept = set(one_of_each([item.nodeid for item in items if not _is_whole(item)]))
    dropped = [item for item in items if not _is_whole(item) and item.nodeid not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if _is_whole(item) or item.nodeid in kept]


def one_of_each(names: list[str]) -> list[str]:
    """Return one of the names "test[parameters]" of each test."""
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        chosen.setdefault(name.partition("[")[0], name)
    return list(chosen.values())


def _is_whole(item: pytest.Item) -> bool:
    return any(folder in item.path.resolve().parents for folder in _WHOLE)
