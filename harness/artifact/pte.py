"""What an ExecuTorch program (.pte) holds: methods, values, instructions, delegates and data.

The names are those of ExecuTorch's `schema/program.fbs`. Payloads are slices of the memory map;
nothing is copied until it is used. `pte_reader` makes these from bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.artifact.flatbuffer import damaged
from harness.artifact.mapped import cut
from harness.errors import ArtifactError


@dataclass(frozen=True)
class TensorValue:
    """A tensor of a method: dtype (numpy's name), shape, and its bytes when it is a constant.

    `dim_order` lists the axes from the outermost in memory to the innermost; empty stands for
    the order of the shape. The shape of one that is `resizable` is the largest that it may have.
    `initial` holds the bytes of a buffer that starts with some and is written to later.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview | None
    dim_order: tuple[int, ...] = ()
    resizable: bool = False
    initial: memoryview | None = None

    def allows(self, shape: Sequence[int]) -> bool:
        """Whether the tensor may have this shape: its own, or when it is resizable one of as many
        axes and no more elements. Source: `TensorImpl::internal_resize_contiguous`."""
        if self.resizable and len(shape) == len(self.shape):
            return math.prod(shape) <= math.prod(self.shape)
        return tuple(shape) == self.shape

    def array(self) -> np.ndarray:
        """Return a constant's value, a view of the file; its buffer may be padded past the end."""
        count = math.prod(self.shape)
        if self.data is None or self.dtype == "bfloat16":
            raise damaged(f"a constant of dtype {self.dtype} without data that numpy can hold")
        dtype = np.dtype(self.dtype)
        data = cut(self.data, 0, count * dtype.itemsize, f"a constant {self.dtype}{self.shape}")
        order = self.dim_order or tuple(range(len(self.shape)))
        try:
            stored = np.frombuffer(data, dtype, count).reshape([self.shape[axis] for axis in order])
        except ValueError:  # no elements, yet sizes that numpy cannot multiply
            raise damaged(f"a constant of shape {self.shape}") from None
        return stored.transpose(np.argsort(order)) if order else stored


@dataclass(frozen=True)
class ListValue:
    """A list of a method's values, by index; -1 stands for None in an optional list."""

    items: tuple[int, ...]


Value = TensorValue | ListValue | bool | int | float | str | tuple[Any, ...] | None


@dataclass(frozen=True)
class KernelCall:
    """Run the operator `name.overload`; `args` are value indices, outputs among them."""

    operator: str
    args: tuple[int, ...]


@dataclass(frozen=True)
class DelegateCall:
    """Run the method's delegate number `delegate` on the values `args`, outputs last."""

    delegate: int
    args: tuple[int, ...]


@dataclass(frozen=True)
class MoveCall:
    """Let the value `target` be the value `source`."""

    source: int
    target: int


@dataclass(frozen=True)
class JumpFalseCall:
    """Go on at instruction `destination` when the value `condition` is false."""

    condition: int
    destination: int


@dataclass(frozen=True)
class FreeCall:
    """The value `value` is not used again."""

    value: int


Instruction = KernelCall | DelegateCall | MoveCall | JumpFalseCall | FreeCall


@dataclass(frozen=True)
class DelegateData:
    """What a backend is handed at load: its id, the processed bytes, the compile specs."""

    backend: str
    processed: memoryview
    compile_specs: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class PteMethod:
    """One execution plan. `inputs` and `outputs` are indices into `values`."""

    name: str
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    delegates: tuple[DelegateData, ...]

    @property
    def is_constant(self) -> bool:
        """Whether this is a constant method: no input, no instruction, it only returns values."""
        return not self.instructions and not self.inputs


@dataclass(frozen=True)
class Pte:
    """A whole program."""

    methods: dict[str, PteMethod]
    named_data: dict[str, memoryview]
    size: int

    def constant(self, method: PteMethod) -> Any:
        """Return what a constant method returns: a bool, int, float, str or array, or a tuple of
        those where it returns several, as a list of end-of-text tokens does.

        Raises ArtifactError when it returns anything else.
        """
        values = tuple(_constant(method.values[index], method.name) for index in method.outputs)
        return values[0] if len(values) == 1 else values


def _constant(value: Value, method: str) -> bool | int | float | str | np.ndarray:
    if isinstance(value, TensorValue):
        try:
            return value.array()
        except ArtifactError as error:
            raise ArtifactError(f"constant method '{method}': {error}") from None
    if not isinstance(value, bool | int | float | str):
        raise damaged(f"constant method '{method}' returns a {type(value).__name__}")
    return value
