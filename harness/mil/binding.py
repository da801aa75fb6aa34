"""Binds an operation's function: adds rounding, building at call time, and nested blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from harness.mil.block import Block
from harness.mil.operation import IMPLEMENTATIONS, Operation, Run
from harness.mil.policy import Policy
from harness.mil.types import TensorType, ValueType
from harness.mil.values import Constant


def built(operation: Operation) -> Run:
    """Return the function of an operation; it rounds FLOAT16 results if the policy does.

    Raise ArtifactError for a wrong parameter, and for one that the builder does not read.
    """
    implementation = IMPLEMENTATIONS[operation.type]
    try:
        run = implementation.build(operation)
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        problem = f"the operation does not take a parameter's value ({error})"
        raise operation.error(problem) from error
    unread = operation.given - operation.read - {*implementation.inputs}
    if unread:
        raise operation.error(f"parameter '{min(unread)}' is not understood")
    makes_values = not (implementation.moves_data or operation.type.startswith("constexpr_"))
    if operation.policy.rounds_half and makes_values:
        return _rounding(run, operation.outputs, operation.policy)
    return run


def _rounding(run: Run, outputs: tuple[ValueType, ...], policy: Policy) -> Run:
    """Return `run` with its FLOAT16 results rounded."""
    halves = [isinstance(o, TensorType) and o.dtype.name == "FLOAT16" for o in outputs]
    if not any(halves):
        return run
    if len(outputs) == 1:
        return lambda *values: policy.rounded(run(*values))

    def rounded(*values: object) -> tuple[object, ...]:
        pairs = zip(run(*values), halves, strict=True)
        return tuple(policy.rounded(result) if half else result for result, half in pairs)

    return rounded


def built_at_call(operation: Operation, computed: Mapping[str, ValueType]) -> Run:
    """Return a function that takes the computed parameters after the tensors, and builds with them.

    It builds again only when a parameter changes.
    """
    last: tuple[list[tuple[tuple[int, ...], bytes]], Run] | None = None

    def run(*values: torch.Tensor) -> object:
        nonlocal last
        cut = len(values) - len(computed)
        arrays = [value.numpy() for value in values[cut:]]
        key = [(array.shape, array.tobytes()) for array in arrays]
        held = last
        if held is None or held[0] != key:
            constants = dict(operation.constants)
            for (name, declared), array in zip(computed.items(), arrays, strict=True):
                if not isinstance(declared, TensorType):
                    raise operation.error(f"parameter '{name}' is not a tensor")
                constants[name] = (Constant(TensorType(declared.dtype, array.shape), array),)
            held = key, built(replace(operation, constants=constants, read=set()))
            last = held
        return held[1](*values[:cut])

    return run


def with_blocks(run: Run, blocks: Sequence[Block], captured: Sequence[int]) -> Run:
    """Return a function that takes the captured values of blocks after the tensors.

    It passes the blocks to `run` as functions of their inputs.
    """

    def bound(*values: object) -> object:
        end = len(values)
        functions: list[Run] = []
        for block, count in zip(reversed(blocks), reversed(captured), strict=True):
            functions.append(partial(_call, block, values[end - count : end]))
            end -= count
        return run(*values[:end], *reversed(functions))

    return bound


def _call(block: Block, captured: Sequence[object], *inputs: object) -> tuple[object, ...]:
    return block.nested(inputs, captured)
