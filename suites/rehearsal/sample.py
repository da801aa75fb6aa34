"""The pytest plugin of a rehearsal: it runs each test function with one of its parameters.

What a test may not do on a Mac rarely depends on its parameters. Conformance and the tests of the
runtimes run whole: they are what the lane is for, and the lines of the runtimes are counted. The
mutants do not run: they judge the checks on our executor, and that does not ask for the platform.
What others have written, such as coremltools' tests of operators, has samples of its own.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_OURS = (_ROOT / "tests", _ROOT / "suites")
_WHOLE = (_ROOT / "tests" / "runtimes", _ROOT / "suites" / "conformance")
_LEFT_OUT = _ROOT / "suites" / "mutants"


def pytest_configure(config: pytest.Config) -> None:
    """Leave the runs of pytest that a test starts as they are, but not pytest-xdist's workers."""
    if not config.getoption("numprocesses", None):
        os.environ.pop("PYTEST_ADDOPTS", None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one of the parameters of each test function, always the same."""
    whole = {item for item in items if _is_inside(item, *_WHOLE) or not _is_inside(item, *_OURS)}
    sampled = [item.nodeid for item in items if not _is_inside(item, *_WHOLE, _LEFT_OUT)]
    kept = set(one_of_each(sampled))
    chosen = [item for item in items if item in whole or item.nodeid in kept]
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    items[:] = chosen


def one_of_each(names: list[str]) -> list[str]:
    """Return one of the names "test[parameters]" of each test."""
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        chosen.setdefault(name.partition("[")[0], name)
    return list(chosen.values())


def _is_inside(item: pytest.Item, *folders: Path) -> bool:
    return any(folder in item.path.resolve().parents for folder in folders)
