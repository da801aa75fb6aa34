"""The content of an ExecuTorch program (.pte): methods, values, instructions, delegates, data.

The names are those of ExecuTorch's `schema/program.fbs`. Payloads are slices of the memory map, not
copies. `pte_reader` makes these objects from bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.artifact.files import cut
from harness.artifact.flatbuffer import damaged
from harness.errors import ArtifactError


@dataclass(frozen=True)
class TensorValue:
    """A tensor of a method: dtype (numpy's name), shape, and its bytes when it is a constant.

    `dim_order` lists the axes from the outermost in memory to the innermost; when it is empty, the
    order is that of the shape. A `resizable` tensor may have any shape up to `shape`. `initial`
    holds the first content of a buffer that the method writes to later. `planned` is the tensor's
    memory, an index into `buffer_sizes` of its method and an offset in bytes, or None when the
    caller gives the memory. An `unbounded` tensor may have any shape; no runtime loads it.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview | None
    dim_order: tuple[int, ...] = ()
    resizable: bool = False
    initial: memoryview | None = None
    planned: tuple[int, int] | None = None
    unbounded: bool = False

    @property
    def nbytes(self) -> int:
        """The number of bytes of its largest shape."""
        size = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize
        return math.prod(self.shape) * size

    def allows(self, shape: Sequence[int]) -> bool:
        """Return whether the tensor may have this shape.

        A resizable tensor may have any shape of the same rank and no more elements, any other only
        its own. Source: ExecuTorch's `TensorImpl::internal_resize_contiguous`.
        """
        if self.resizable and len(shape) == len(self.shape):
            return math.prod(shape) <= math.prod(self.shape)
        return tuple(shape) == self.shape

    def array(self) -> np.ndarray:
        """Return a constant's value, a view of the file; its data may end in padding.

        Raises ArtifactError when the tensor has no data, or too little for its shape.
        """
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
    """A list of indices of a method's values; in an optional list, -1 means None."""

    items: tuple[int, ...]


Value = TensorValue | ListValue | bool | int | float | str | tuple[Any, ...] | None


@dataclass(frozen=True)
class KernelCall:
    """Run the operator `name.overload` on the values `args`, which include its outputs."""

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
    """Continue at the instruction `destination` when the value `condition` is false."""

    condition: int
    destination: int


@dataclass(frozen=True)
class FreeCall:
    """Drop the value `value`, which no later instruction uses."""

    value: int


Instruction = KernelCall | DelegateCall | MoveCall | JumpFalseCall | FreeCall


@dataclass(frozen=True)
class DelegateData:
    """What ExecuTorch passes to a backend at load: its id, the processed bytes, compile specs."""

    backend: str
    processed: memoryview
    compile_specs: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class PteMethod:
    """A method, in the schema an execution plan; `inputs` and `outputs` index `values`.

    `buffer_sizes` are the bytes of the buffers that the runtime allocates; the first is not used.
    """

    name: str
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    delegates: tuple[DelegateData, ...]
    buffer_sizes: tuple[int, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether the method has no inputs and no instructions, and so only returns values."""
        return not self.instructions and not self.inputs


@dataclass(frozen=True)
class Pte:
    """A program.

    `keys` are the keys of its named data as they come, even those that come twice. `unused` has the
    bytes of segments (or of a folder's packages) that are not used, by name.
    """

    methods: dict[str, PteMethod]
    named_data: dict[str, memoryview]
    size: int
    keys: tuple[str, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)

    def constant(self, method: PteMethod) -> Any:
        """Return the result of a constant method: a bool, int, float, str or array.

        A method with several outputs, such as a list of end-of-text tokens, gives a tuple of these.
        Raises ArtifactError when the method returns anything else.
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
