"""Errors as coremltools expects them from its native module: RuntimeError, with our sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HarnessError


@contextmanager
def as_runtime_error() -> Iterator[None]:
    """Turn a HarnessError into a RuntimeError: coremltools catches no other."""
    try:
        yield
    except HarnessError as error:
        raise RuntimeError(str(error)) from error
