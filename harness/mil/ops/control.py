"""Control flow: a choice between two blocks, and a loop over one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.mil.operation import Kinds, Operation, Run, operation
from harness.mil.types import ListType, StateType, TensorType

_MOST_ROUNDS = 1 << 18  # seconds, where the body is small

_TAKES: dict[str, Kinds] = {"loop_vars": (TensorType, ListType, StateType)}

_Nested = Callable[..., tuple[Any, ...]]


@operation("cond", inputs=("pred",), blocks=2, moves_data=True)
def cond(op: Operation) -> Run:
    """Run the first block where ``pred`` holds, else the second."""

    def run(pred: Any, then: _Nested, otherwise: _Nested) -> tuple[Any, ...]:
        return then() if bool(pred) else otherwise()

    return run


@operation("while_loop", inputs=("loop_vars",), blocks=2, types=_TAKES, moves_data=True)
def while_loop(op: Operation) -> Run:
    """Give the loop's variables to the second block while the first says so."""

    def run(*values: Any) -> tuple[Any, ...]:
        *variables, goes_on, body = values
        current = tuple(variables)
        for _ in range(_MOST_ROUNDS):
            if not bool(goes_on(*current)[0]):
                return current
            current = body(*current)
        raise op.error(f"has not ended after {_MOST_ROUNDS} rounds")

    return run
