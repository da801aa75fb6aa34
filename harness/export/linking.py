"""Chains the functions of stages into the function of a partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.export.plan import Partition


def link(partition: Partition, functions: Sequence[Any]) -> Any:
    """Return the `Function` message of a partition, made of one message for each of its stages.

    Its inputs are the partition's inputs, by their own names, then its weight pieces, named by
    `weight_input`; its outputs are the partition's. The names of inner values begin with the stage.
    """
    linked = type(functions[0])(opset=functions[0].opset)
    block = linked.block_specializations[linked.opset]
    declared: dict[str, Any] = {}
    first_piece = 0
    for number, (stage, function) in enumerate(zip(partition.stages, functions, strict=True)):
        pieces = range(first_piece, first_piece + len(stage.pieces))
        first_piece = pieces.stop
        inputs = [value.name for value in stage.inputs] + [weight_input(i) for i in pieces]
        own = function.block_specializations[function.opset]
        names = dict(zip((value.name for value in function.inputs), inputs, strict=True))
        names |= dict(zip(own.outputs, (value.name for value in stage.outputs), strict=True))
        for value, name in zip(function.inputs, inputs, strict=True):
            declared.setdefault(name, value.type)
        for operation in own.operations:
            added = block.operations.add()
            added.CopyFrom(operation)
            _rename(added, names, f"{stage.kind}_{number}_")
    taken = [value.name for value in partition.inputs]
    for name in [*taken, *(weight_input(i) for i in range(first_piece))]:
        linked.inputs.add(name=name).type.CopyFrom(declared[name])
    block.outputs.extend(value.name for value in partition.outputs)
    return linked


def weight_input(number: int) -> str:
    """Return the name of the function input for a partition's weight piece of that number."""
    return f"weight_{number}"


def _rename(operation: Any, names: Mapping[str, str], prefix: str) -> None:
    """Rename all values of an operation by `names`; a value that it lacks gets the prefix."""

    def renamed(name: str) -> str:
        return names.get(name, f"{prefix}{name}")

    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                binding.name = renamed(binding.name)
    for output in operation.outputs:
        output.name = renamed(output.name)
    text = operation.attributes["name"].immediateValue.tensor.strings.values
    text[0] = renamed(text[0])
