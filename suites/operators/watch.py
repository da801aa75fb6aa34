"""Sees what happens inside a test: models loaded, predictions made, arrays compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from suites.operators.half import within_half

_FLOAT16 = 10  # in MIL.proto's DataType


@dataclass
class Sight:
    """What one test did; `values` counts array elements that were compared after a prediction,
    `at_half` comparisons that held at fp16 resolution only."""

    loads: int = 0
    predictions: int = 0
    values: int = 0
    at_half: int = 0
    holds_half: bool = False

    def to_json(self) -> dict[str, int | bool]:
        """Plain values, for xdist to carry."""
        return asdict(self)


@contextmanager
def watched() -> Iterator[Sight]:
    """Watch the stand-in and numpy's comparison while a test runs."""
    from coremltools import libcoremlpython as native

    sight, proxy = Sight(), native._MLModelProxy
    load, predict, compare = proxy.__init__, proxy.predict, np.testing.assert_allclose

    def watched_load(self: Any, *arguments: Any) -> None:
        sight.loads += 1
        load(self, *arguments)
        sight.holds_half |= _holds_half(self)

    def watched_predict(self: Any, *arguments: Any) -> Any:
        sight.predictions += 1
        return predict(self, *arguments)

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


def _holds_half(proxy: Any) -> bool:
    package = getattr(proxy, "_package", None)  # the stand-in's; Core ML itself shows nothing
    if package is None:
        return False
    return any(
        _any_half(message.inputs) or _block_holds_half(package.operations(name))
        for name, message in package.functions.items()
    )


def _any_half(named: Any) -> bool:
    return any(value.type.tensorType.dataType == _FLOAT16 for value in named)


def _block_holds_half(block: Any) -> bool:
    return any(
        _any_half(operation.outputs)
        or any(
            argument.value.type.tensorType.dataType == _FLOAT16
            for bound in operation.inputs.values()
            for argument in bound.arguments
        )
        or any(_block_holds_half(inner) for inner in operation.blocks)
        for operation in block.operations
    )
