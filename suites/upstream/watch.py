"""Sees what happens inside a test: executions by the stand-in, assertions, values compared."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from unittest import mock

import torch

from harness.suites.upstream.gates import Lines


@dataclass
class Sight:
    """What one test did.

    It has the numbers of executions that gave a result and of those that were refused, the lines of
    its file at which it asserted, and how many values it compared after an execution.
    """

    executions: int = 0
    refusals: int = 0
    values: int = 0
    assertions: list[int] = field(default_factory=list)

    def reached(self, assertion: Lines) -> bool:
        """Return whether the test made an assertion."""
        return any(line in assertion for line in self.assertions)


@contextmanager
def watched(file: str) -> Iterator[Sight]:
    """Watch the runtime, and the assertions of a test's file, while the test runs."""
    from executorch.runtime import Method

    sight = Sight()
    with ExitStack() as patches:

        def put(owner: Any, name: str, wrap: Callable[..., Any]) -> None:
            patched = wrap(getattr(owner, name), sight)
            patches.enter_context(mock.patch.object(owner, name, patched))

        put(Method, "execute", _executing)
        put(torch, "allclose", _comparing)
        for name in filter(lambda name: name.startswith("assert"), dir(unittest.TestCase)):
            patched = _asserting(getattr(unittest.TestCase, name), sight, file)
            patches.enter_context(mock.patch.object(unittest.TestCase, name, patched))
        yield sight


def _executing(execute: Callable[..., Any], sight: Sight) -> Callable[..., Any]:
    @wraps(execute)
    def executed(method: Any, inputs: Any) -> Any:
        try:
            result = execute(method, inputs)
        except RuntimeError:
            sight.refusals += _is_delegated(method)
            raise
        sight.executions += _is_delegated(method)
        return result

    return executed


def _is_delegated(method: Any) -> bool:
    """Return whether a method delegates to Core ML; on a Mac, only the runtime knows."""
    from harness.shim.executorch import MethodProxy

    return sys.platform == "darwin" or isinstance(method._method, MethodProxy)


def _comparing(compare: Callable[..., bool], sight: Sight) -> Callable[..., bool]:
    @wraps(compare)
    def compared(actual: torch.Tensor, desired: torch.Tensor, **options: Any) -> bool:
        if sight.executions:
            sight.values += desired.numel()
        return compare(actual, desired, **options)

    return compared


def _asserting(check: Callable[..., Any], sight: Sight, file: str) -> Callable[..., Any]:
    @wraps(check)
    def checked(*arguments: Any, **options: Any) -> Any:
        caller = sys._getframe(1)
        if caller.f_code.co_filename == file:
            sight.assertions.append(caller.f_lineno)
        return check(*arguments, **options)

    return checked
