"""What stands around an operation's function: rounding, late building, nested blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from harness.mil.block import Block
from harness.mil.operation import Operation, Run
from harness.mil.policy import Policy
from harness.mil.types import TensorType, ValueType
from harness.mil.values import Constant


def rounding(run: Run, outputs: tuple[ValueType, ...], policy: Policy) -> Run:
    """Return ``run`` with its FLOAT16 results rounded."""
    halves = [isinstance(o, TensorType) and o.dtype.name == "FLOAT16" for o in outputs]
    if not any(halves):
        return run
    if len(outputs) == 1:
        return lambda *values: policy.rounded(run(*values))

    def rounded(*values: Any) -> tuple[Any, ...]:
        pairs = zip(run(*values), halves, strict=True)
        return tuple(policy.rounded(result) if half else result for result, half in pairs)

    return rounded


def built_at_call(
    build: Callable[[Operation], Run], operation: Operation, computed: Mapping[str, ValueType]
) -> Run:
    """Return a function that takes the computed parameters after the tensors, and builds with them.

    What was built last is used again while the parameters stay the same.
    """
    last: tuple[Any, Run] | None = None

    def run(*values: Any) -> Any:
        nonlocal last
        cut = len(values) - len(computed)
        arrays = [value.numpy() for value in values[cut:]]
        key = [(array.shape, array.tobytes()) for array in arrays]
        built = last
        if built is None or built[0] != key:
            constants = dict(operation.constants)
            for (name, declared), array in zip(computed.items(), arrays, strict=True):
                if not isinstance(declared, TensorType):
                    raise operation.error(f"parameter '{name}' is not a tensor")
                constants[name] = (Constant(TensorType(declared.dtype, array.shape), array),)
            built = key, build(replace(operation, constants=constants, read=set()))
            last = built
        return built[1](*values[:cut])

    return run


def with_blocks(run: Run, blocks: Sequence[Block], captured: Sequence[int]) -> Run:
    """Return a function that takes what the blocks capture after the tensors, and gives the blocks
    to ``run`` as functions of their inputs."""

    def bound(*values: Any) -> Any:
        end = len(values)
        functions: list[Callable[..., Any]] = []
        for block, count in zip(reversed(blocks), reversed(captured), strict=True):
            functions.append(partial(_call, block, values[end - count : end]))
            end -= count
        return run(*values[:end], *reversed(functions))

    return bound


def _call(block: Block, captured: Sequence[Any], *inputs: Any) -> tuple[Any, ...]:
    return block.nested(inputs, captured)
