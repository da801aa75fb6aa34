"""Verifies what the tests of this room say they execute."""

import pytest

from tests.mil.rows import executing


def pytest_configure(config):
    config.addinivalue_line("markers", "executes(*operations): the test executes these operations")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a test that does not execute an operation that it names."""
    names = {name for mark in item.iter_markers("executes") for name in mark.args}
    with executing(names):
        return (yield)
