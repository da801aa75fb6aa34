"""The memory that a function's values need at one time, by their declared shapes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.artifact.proto import declared_shape, mil_types

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Block, Function, Operation, ValueType


@dataclass(frozen=True)
class ActivationPeak:
    """The largest sum of the sizes of all values that a function holds at one time, in bytes.

    Inputs and outputs count, constants and states do not. `operation` is where the peak is. With
    `is_minimum`, a flexible size counts as 1. A device may need less, as results share memory
    there, or more, as it may keep copies in layouts of its own.
    """

    bytes: int
    operation: str
    is_minimum: bool


def activation_peak(function: Function, block: Block) -> ActivationPeak:
    """Return the activation peak of a function, by the declared shapes of its values."""
    return ActivationPeak(*_peak(block, [value.type for value in function.inputs]))


def _peak(block: Block, given: Iterable[ValueType]) -> tuple[int, str, bool]:
    """Return a block's peak, the operation where it is, and whether a size is flexible.

    `given` are the types of its inputs, which the caller holds to the end.
    """
    last = dict.fromkeys(block.outputs, len(block.operations))
    for index, operation in enumerate(block.operations):
        for name in _reads(operation):
            last[name] = max(last.get(name, 0), index)
    ending: defaultdict[int, list[int]] = defaultdict(list)
    sizes = [_size(kind) for kind in given]
    flexible = any(is_flexible for _, is_flexible in sizes)
    live = sum(size for size, _ in sizes)
    peak, where = live, "its inputs"
    for index, operation in enumerate(block.operations):
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            continue
        own = [(output.name, *_size(output.type)) for output in operation.outputs]
        inner = [_peak(nested, [v.type for v in nested.inputs]) for nested in operation.blocks]
        live += sum(size for _, size, _ in own)
        reached = live + max((found for found, _, _ in inner), default=0)
        flexible |= any(one for _, _, one in (*own, *inner))
        if reached > peak:
            peak, where = reached, f"{operation.type} '{own[0][0] if own else ''}'"
        for name, size, _ in own:
            ending[last.get(name, index)].append(size)
        live -= sum(ending.pop(index, ()))
    return peak, where, flexible


def _reads(operation: Operation) -> Iterator[str]:
    """Yield the names that an operation and the blocks in it read."""
    for argument in operation.inputs.values():
        yield from (binding.name for binding in argument.arguments if binding.name)
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _reads(inner)


def _size(kind: ValueType) -> tuple[int, bool]:
    """Return the bytes of a tensor, 0 for a state or a list, and whether a size is flexible."""
    if kind.WhichOneof("type") != "tensorType":
        return 0, False
    dtype, shape = mil_types().get(kind.tensorType.dataType), declared_shape(kind.tensorType)
    count = math.prod(1 if size is None else size for size in shape)
    return (count * (dtype.bits if dtype else 0) + 7) // 8, None in shape
