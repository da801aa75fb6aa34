"""Where a function of an ML Program refers to the weight file.

A reference is a `BlobFileValue`. It can be the value of an attribute (of an operation, a block or
the function), of an operation's input, or of an entry of a tuple, list or dictionary; in every
block for every opset. Source: coremltools' `MIL.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def blob_references(function: Any) -> Iterator[Any]:
    """Yield every `BlobFileValue` message of a `Function`, to be read or to be changed."""
    yield from _in_values(function.attributes.values())
    for block in function.block_specializations.values():
        yield from _in_block(block)


def _in_block(block: Any) -> Iterator[Any]:
    yield from _in_values(block.attributes.values())
    for operation in block.operations:
        yield from _in_values(operation.attributes.values())
        for argument in operation.inputs.values():
            yield from _in_values(binding.value for binding in argument.arguments)
        for inner in operation.blocks:
            yield from _in_block(inner)


def _in_values(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        match value.WhichOneof("value"):
            case "blobFileValue":
                yield value.blobFileValue
            case "immediateValue":
                yield from _in_values(_entries(value.immediateValue))


def _entries(immediate: Any) -> Iterator[Any]:
    """Yield the values that a compound value is made of; a tensor is made of none."""
    match immediate.WhichOneof("value"):
        case "tuple":
            yield from immediate.tuple.values
        case "list":
            yield from immediate.list.values
        case "dictionary":
            for pair in immediate.dictionary.values:
                yield pair.key
                yield pair.value
