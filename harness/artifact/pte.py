"""What an ExecuTorch program (.pte) holds: methods, values, instructions, delegates and data.

The names are those of ExecuTorch's `schema/program.fbs`. Payloads are slices of the memory map;
nothing is copied until it is used. `pte_reader` makes these from bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.artifact.flatbuffer import damaged
from harness.artifact.mapped import cut


@dataclass(frozen=True)
class TensorValue:
    """A tensor of a method: dtype (numpy's name), shape, and its bytes when it is a constant."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview | None

    def array(self) -> np.ndarray:
        """Return a constant's value, a view of the file; its buffer may be padded past the end."""
        count = math.prod(self.shape)
        if self.data is None or self.dtype == "bfloat16":
            raise damaged(f"a constant of dtype {self.dtype} without data that numpy can hold")
        dtype = np.dtype(self.dtype)
        data = cut(self.data, 0, count * dtype.itemsize, f"a constant {self.dtype}{self.shape}")
        return np.frombuffer(data, dtype, count).reshape(self.shape)


@dataclass(frozen=True)
class ListValue:
    """A list of a method's values, by index; -1 stands for None in an optional list."""

    items: tuple[int, ...]


Value = TensorValue | ListValue | bool | int | float | str | tuple[Any, ...] | None


@dataclass(frozen=True)
class KernelCall:
    """Run the operator ``name.overload``; ``args`` are value indices, outputs among them."""

    operator: str
    args: tuple[int, ...]


@dataclass(frozen=True)
class DelegateCall:
    """Run the method's delegate number ``delegate`` on the values ``args``, outputs last."""

    delegate: int
    args: tuple[int, ...]


@dataclass(frozen=True)
class MoveCall:
    """Let the value ``target`` be the value ``source``."""

    source: int
    target: int


@dataclass(frozen=True)
class JumpFalseCall:
    """Go on at instruction ``destination`` when the value ``condition`` is false."""

    condition: int
    destination: int


@dataclass(frozen=True)
class FreeCall:
    """The value ``value`` is not used again."""

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
    """One execution plan. ``inputs`` and ``outputs`` are indices into ``values``."""

    name: str
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    delegates: tuple[DelegateData, ...]

    @property
    def is_constant(self) -> bool:
        """Whether this is a constant method: no instruction, it only returns values."""
        return not self.instructions


@dataclass(frozen=True)
class Pte:
    """A whole program."""

    methods: dict[str, PteMethod]
    named_data: dict[str, memoryview]
    size: int

    def constant(self, method: PteMethod) -> bool | int | float | str | np.ndarray:
        """Return what a constant method returns; raises ArtifactError when it isn't one value."""
        value = method.values[method.outputs[0]] if len(method.outputs) == 1 else None
        if isinstance(value, TensorValue):
            return value.array()
        if not isinstance(value, bool | int | float | str):
            raise damaged(f"constant method '{method.name}' does not return one value")
        return value
