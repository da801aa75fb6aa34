"""Control flow: a choice between blocks, a loop, a choice between elements; and lists of tensors.

Writing to a list makes a new list, which grows if the index is beyond its end. An element that was
never written is zero, if its shape is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from harness.mil.operation import Kinds, Operation, Run, operation
from harness.mil.types import ListType, StateType, TensorList, TensorType

_MAX_ROUNDS = 1 << 15  # of a loop, with all loops in it: a few seconds with a small body


_LOOP_TYPES: dict[str, Kinds] = {"loop_vars": (TensorType, ListType, StateType)}


_Nested = Callable[..., tuple[Any, ...]]


_UNDER_WAY: ContextVar[Iterator[int] | None] = ContextVar("rounds of the outermost loop")


@operation("cond", inputs=("pred",), blocks=2, moves_data=True)
def cond(op: Operation) -> Run:
    """Run the first block if `pred` is true, else the second."""

    def run(pred: Any, then: _Nested, otherwise: _Nested) -> tuple[Any, ...]:
        return then() if bool(pred) else otherwise()

    return run


@operation("while_loop", inputs=("loop_vars",), blocks=2, types=_LOOP_TYPES, moves_data=True)
def while_loop(op: Operation) -> Run:
    """Run the second block on the loop's variables while the first block returns true."""

    def run(*values: Any) -> tuple[Any, ...]:
        *variables, goes_on, body = values
        current = tuple(variables)
        with _counted() as rounds:
            for _ in rounds:
                if not bool(goes_on(*current)[0]):
                    return current
                current = body(*current)
        raise op.error(f"did not end after {_MAX_ROUNDS} rounds, including those of inner loops")

    return run


@contextmanager
def _counted() -> Iterator[Iterator[int]]:
    """Yield the rounds that a loop has left; an inner loop takes them from the outermost one."""
    outer = _UNDER_WAY.get(None)
    if outer is not None:
        yield outer
        return
    rounds = iter(range(_MAX_ROUNDS))
    token = _UNDER_WAY.set(rounds)
    try:
        yield rounds
    finally:
        _UNDER_WAY.reset(token)


@operation("select", inputs=("cond", "a", "b"))
def select(op: Operation) -> Run:
    """Take `a` where `cond` is true, else `b`."""
    return torch.where


_MAX_ITEMS = 1 << 20


_LIST_TYPES: dict[str, Kinds] = {"ls": ListType}


@operation("make_list", inputs=(), computed=("init_length",), moves_data=True)
def make_list(op: Operation) -> Run:
    """Make a list of `init_length` unwritten elements."""
    length = op.constant("init_length", 1)
    for name in ("dynamic_length", "dtype", "elem_shape"):
        op.all_of(name)  # the declared type has them too
    if not isinstance(op.outputs[0], ListType) or not 0 <= length <= _MAX_ITEMS:
        raise op.error(f"a list of {length} elements; at most {_MAX_ITEMS} are allowed")
    return lambda: TensorList((None,) * length)


@operation("list_length", inputs=("ls",), types=_LIST_TYPES, moves_data=True)
def list_length(op: Operation) -> Run:
    """Return the number of elements."""
    return lambda ls: torch.tensor(len(ls.items), dtype=torch.int32)


@operation("list_write", inputs=("ls", "index", "value"), types=_LIST_TYPES, moves_data=True)
def list_write(op: Operation) -> Run:
    """Write one element."""
    return lambda ls, index, value: _written(op, ls, [(int(index), value)])


@operation("list_scatter", inputs=("ls", "indices", "value"), types=_LIST_TYPES, moves_data=True)
def list_scatter(op: Operation) -> Run:
    """Write each slice of `value` to the element with the index of the same position."""

    def run(ls: TensorList, indices: Tensor, value: Tensor) -> TensorList:
        return _written(op, ls, list(zip(indices.tolist(), value.unbind(0), strict=True)))

    return run


@operation("list_read", inputs=("ls", "index"), types=_LIST_TYPES, moves_data=True)
def list_read(op: Operation) -> Run:
    """Read one element."""
    return lambda ls, index: _element(op, ls, int(index), op.output.shape)


@operation("list_gather", inputs=("ls", "indices"), types=_LIST_TYPES, moves_data=True)
def list_gather(op: Operation) -> Run:
    """Read several elements, stacked along a new first axis."""

    def run(ls: TensorList, indices: Tensor) -> Tensor:
        shape = op.output.shape[1:]
        return torch.stack([_element(op, ls, index, shape) for index in indices.tolist()])

    return run


def _written(op: Operation, ls: TensorList, pairs: list[tuple[int, Tensor]]) -> TensorList:
    items = list(ls.items)
    for index, value in pairs:
        if not 0 <= index < _MAX_ITEMS:
            raise op.error(f"index {index}; elements 0 to {_MAX_ITEMS - 1} can be written")
        items.extend([None] * (index + 1 - len(items)))
        items[index] = value
    return TensorList(tuple(items))


def _element(op: Operation, ls: TensorList, index: int, shape: tuple[int | None, ...]) -> Tensor:
    if not 0 <= index < len(ls.items):
        raise op.error(f"index {index} of a list of {len(ls.items)} elements")
    element = ls.items[index]
    if element is not None:
        return element
    alike = next((item.shape for item in ls.items if item is not None), None)
    if alike is None and (None in shape or op.output.variadic):
        raise op.error(f"element {index} was never written, and its shape is not declared")
    return torch.zeros(alike or [size or 0 for size in shape], dtype=op.carrier)
