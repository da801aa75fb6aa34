"""Control flow: a choice between two blocks, and a loop over one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harness.mil.operation import Kinds, Operation, Run, operation
from harness.mil.types import ListType, StateType, TensorType

_MOST_ROUNDS = 1 << 15  # of a loop with all loops in it: a few seconds, where the body is small

_TAKES: dict[str, Kinds] = {"loop_vars": (TensorType, ListType, StateType)}

_Nested = Callable[..., tuple[Any, ...]]
_UNDER_WAY: ContextVar[Iterator[int] | None] = ContextVar("rounds of the outermost loop")


@operation("cond", inputs=("pred",), blocks=2, moves_data=True)
def cond(op: Operation) -> Run:
    """Run the first block where `pred` holds, else the second."""

    def run(pred: Any, then: _Nested, otherwise: _Nested) -> tuple[Any, ...]:
        return then() if bool(pred) else otherwise()

    return run


@operation("while_loop", inputs=("loop_vars",), blocks=2, types=_TAKES, moves_data=True)
def while_loop(op: Operation) -> Run:
    """Give the loop's variables to the second block while the first says so."""

    def run(*values: Any) -> tuple[Any, ...]:
        *variables, goes_on, body = values
        current = tuple(variables)
        with _counted() as rounds:
            for _ in rounds:
                if not bool(goes_on(*current)[0]):
                    return current
                current = body(*current)
        raise op.error(f"has not ended after {_MOST_ROUNDS} rounds, those of loops in it included")

    return run


@contextmanager
def _counted() -> Iterator[Iterator[int]]:
    """The rounds that are left to a loop: an inner one takes them from those of the outermost."""
    outer = _UNDER_WAY.get(None)
    if outer is not None:
        yield outer
        return
    rounds = iter(range(_MOST_ROUNDS))
    token = _UNDER_WAY.set(rounds)
    try:
        yield rounds
    finally:
        _UNDER_WAY.reset(token)
