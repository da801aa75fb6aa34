"""The fixture that the suites have for pytest-benchmark."""

from harness.suites.large.conftest import timed

__all__ = ["timed"]
