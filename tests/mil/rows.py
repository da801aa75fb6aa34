"""The tables of operation tests: a row is a sample of an operation and what must come of it.

To test an operation, add a `Row` to the `ROWS` of the module of its family. A test that needs more
than a row is marked `@pytest.mark.executes("name", ...)`. Both are verified while they run: a test
fails when an operation that it names is not executed.
"""

import importlib
import pkgutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.mil.operation import IMPLEMENTATIONS, operations
from tests.mil.programs import execute


class Row:
    """A sample of an operation: inputs by name, parameters, and the result of a reference.

    The result is a tuple for an operation that has several. A row with an `error` instead must be
    refused with a sentence that names the operation and matches. `build(mb, *inputs)` makes the
    program when a single operation is not enough.
    """

    def __init__(
        self,
        operation,
        inputs,
        expected=None,
        /,
        *,
        note="",
        error="",
        target="iOS18",
        build=None,
        **parameters,
    ):
        self.operation = operation
        self.inputs = inputs
        self.expected = expected if isinstance(expected, tuple) else (expected,)
        self.name = f"{operation} {note}".strip()
        self.error = error
        self.marks = () if error else pytest.mark.executes(operation)
        self._target = target
        self._build = build or self._alone
        self._parameters = parameters

    def _alone(self, mb, *values):
        inputs = dict(zip(self.inputs, values, strict=True))
        result = getattr(mb, self.operation)(**inputs, **self._parameters)
        return tuple(result) if isinstance(result, list) else result

    def check(self, tolerance):
        """Execute the sample and compare every result, or expect the error.

        The results of an operation whose tolerance class is `exact` must be the reference's.
        """
        run = lambda: execute(self._build, *self.inputs.values(), target=self._target)  # noqa: E731
        if self.error:
            with pytest.raises(HarnessError, match=f"{self.operation} '.*{self.error}"):
                run()
            return
        name = self.operation
        assert name in operations(), f"operation '{name}' has no table in mil/operations.toml"
        exact = operations()[name].tolerance == "exact"
        compare(run(), self.expected, 0 if exact else tolerance)


def compare(results, expected, tolerance):
    """Compare the results of a program with those of a reference."""
    assert len(results) == len(expected) > 0
    for result, want in zip(results, map(np.asarray, expected), strict=True):
        assert result.shape == want.shape
        if not tolerance and result.dtype.kind == "f":  # a reference may be of higher precision
            want = want.astype(result.dtype)
        np.testing.assert_allclose(result, want, rtol=tolerance, atol=tolerance)


def each(rows):
    """Parametrize a test with rows; it executes the operation of each that has no error."""
    return pytest.mark.parametrize(
        "row",
        [pytest.param(row, id=row.name, marks=row.marks) for row in rows],
    )


@contextmanager
def executing(names):
    """Fail unless each of these operations is executed in the block, at load or in a call."""
    executed = set()

    def recording(name, build):
        def recorded(operation):
            function = build(operation)

            def run(*values):
                executed.add(name)
                return function(*values)

            return run

        return recorded

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            row = IMPLEMENTATIONS[name]
            patch.setitem(IMPLEMENTATIONS, name, replace(row, build=recording(name, row.build)))
        yield
    assert set(names) <= executed, f"not executed: {', '.join(sorted(set(names) - executed))}"


def named_operations():
    """Return the operations that the tests of this room say they execute."""
    package = importlib.import_module("tests.mil")
    modules = (
        importlib.import_module(f"tests.mil.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
        if module.name.startswith("test_")
    )
    marks = [
        mark
        for module in modules
        for test in vars(module).values()
        for mark in getattr(test, "pytestmark", ())
    ]
    marks += [
        mark
        for outer in marks
        if outer.name == "parametrize"
        for parameters in outer.args[1]
        for mark in getattr(parameters, "marks", ())
    ]
    return {name for mark in marks if mark.name == "executes" for name in mark.args}
