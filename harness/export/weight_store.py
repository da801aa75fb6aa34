"""Stores a model's weights in a weight file, and puts them into a lowered function.

They are cast, quantized and packed as an export asks for. In the function, a weight becomes a
constant, or a `constexpr_blockwise_shift_scale` if it is quantized, right before the first
operation that reads it. A matrix product with such an input becomes a `linear`. coremltools did not
make one because a `linear` needs a constant weight. Source of the operations' rules: coremltools'
iOS 18 opset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from harness.artifact.blob import Blob, WeightFile
from harness.artifact.proto import proto_module
from harness.export.options import ExportOptions
from harness.export.plan import Piece
from harness.models import ModelConfig
from harness.models.quantize import DTYPES, quantize

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")
_MIL_NAMES = {torch.float16: "FLOAT16", torch.float32: "FLOAT32"}


@dataclass(frozen=True)
class Stored:
    """An array in a weight file: its MIL dtype, its shape, and the offset of its entry."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Weight:
    """A weight in a weight file: its data, and its scale when it is quantized."""

    data: Stored
    scale: Stored | None = None


class WeightStore:
    """Writes the weights of a checkpoint into weight files, piece by piece.

    Only one piece is in memory at a time, because the checkpoint is mapped.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, torch.Tensor], options: ExportOptions
    ) -> None:
        self._weights = weights
        self._dtype = DTYPES[options.dtype]
        self._schemes = options.quantization.schemes(config)

    def add(self, piece: Piece, file: WeightFile) -> Weight:
        """Write a piece to a weight file, quantized by its weight's scheme."""
        values = self._weights[piece.weight][piece.start : piece.stop].to(self._dtype)
        scheme = self._schemes.get(piece.weight)
        if scheme is None:
            return Weight(_store(values, _MIL_NAMES[self._dtype], file))
        bits, group = scheme
        data, scale = quantize(values, bits, group)
        return Weight(
            _store(data, f"INT{bits}", file), _store(scale, _MIL_NAMES[self._dtype], file)
        )


def _store(values: torch.Tensor, dtype: str, file: WeightFile) -> Stored:
    padding_bits = 0
    content = values.contiguous()
    if dtype == "INT4":
        padding_bits = 4 * (values.numel() % 2)
        content = pack_int4(values)
    blob = Blob(dtype, content.numpy().data.cast("B"), padding_bits)
    return Stored(dtype, tuple(values.shape), file.add(blob))


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """Pack int8 values of -8 to 7 two to a byte, the first in the lower half; uint8 [n / 2]."""
    flat = values.reshape(-1).view(torch.uint8)
    if flat.numel() % 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    return (flat[::2] & 0xF) | (flat[1::2] << 4)


def fill(function: MIL_pb2.Function, weights: Mapping[str, Weight], weight_file: str) -> None:
    """Replace the inputs of a `Function` that `weights` names.

    `weight_file` is the path of the weight file as the program writes it.
    """
    block = function.block_specializations[function.opset]
    operations = list(block.operations)
    users = _first_users(operations, weights)
    filled: list[MIL_pb2.Operation] = []
    constants = {op.outputs[0].name: op for op in operations if op.type == "const"}
    for number, operation in enumerate(operations):
        for name in users.get(number, ()):
            filled.append(_weight_operation(operation, name, weights[name], weight_file))
        if operation.type == "matmul" and _bound(operation, "y") in weights:
            operation = _as_linear(operation, constants)
        filled.append(operation)
    used = {name for op in filled for name in _reads(op)} | set(block.outputs)
    kept = [op for op in filled if op.type != "const" or op.outputs[0].name in used]
    _replace(block.operations, kept)
    _replace(function.inputs, [v for v in function.inputs if v.name not in weights])


def _first_users(
    operations: Sequence[MIL_pb2.Operation], weights: Mapping[str, Weight]
) -> dict[int, list[str]]:
    """Return the weights by the number of the operation that is the first to read them."""
    users: dict[int, list[str]] = {}
    seen: set[str] = set()
    for number, operation in enumerate(operations):
        for name in _reads(operation):
            if name in weights and name not in seen:
                seen.add(name)
                users.setdefault(number, []).append(name)
    return users


def _reads(operation: MIL_pb2.Operation) -> list[str]:
    return [b.name for argument in operation.inputs.values() for b in argument.arguments if b.name]


def _bound(operation: MIL_pb2.Operation, parameter: str) -> str:
    return operation.inputs[parameter].arguments[0].name


def _as_linear(
    product: MIL_pb2.Operation, constants: Mapping[str, MIL_pb2.Operation]
) -> MIL_pb2.Operation:
    """Return x @ weight.T as the operation of that name."""
    flags = {
        name: constants[_bound(product, name)].attributes["val"].immediateValue.tensor.bools.values
        for name in ("transpose_x", "transpose_y")
    }
    assert [list(flags[name]) for name in sorted(flags)] == [[False], [True]], product
    linear = type(product)()
    linear.CopyFrom(product)
    linear.type = "linear"
    linear.inputs.clear()
    linear.inputs["x"].CopyFrom(product.inputs["x"])
    linear.inputs["weight"].CopyFrom(product.inputs["y"])
    return linear


def _weight_operation(
    like: MIL_pb2.Operation, name: str, weight: Weight, weight_file: str
) -> MIL_pb2.Operation:
    """Return the operation that makes a weight; `like` is an operation of the same class."""
    operation = type(like)()
    output = operation.outputs.add(name=name)
    _set_text(operation.attributes["name"], name)
    if weight.scale is None:
        operation.type = "const"
        _set_stored(operation.attributes["val"], weight.data, weight_file)
        output.type.CopyFrom(operation.attributes["val"].type)
        return operation
    operation.type = "constexpr_blockwise_shift_scale"
    for parameter, stored in (("data", weight.data), ("scale", weight.scale)):
        value = operation.inputs[parameter].arguments.add().value
        _set_stored(value, stored, weight_file)
    _set_type(output.type, weight.scale.dtype, weight.data.shape)
    return operation


def _set_stored(value: MIL_pb2.Value, stored: Stored, weight_file: str) -> None:
    _set_type(value.type, stored.dtype, stored.shape)
    value.blobFileValue.fileName = weight_file
    value.blobFileValue.offset = stored.offset


def _set_type(value_type: MIL_pb2.ValueType, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = value_type.tensorType
    tensor.dataType, tensor.rank = proto_module("MIL_pb2").DataType.Value(dtype), len(shape)
    for size in shape:
        tensor.dimensions.add().constant.size = size


def _set_text(value: MIL_pb2.Value, text: str) -> None:
    _set_type(value.type, "STRING", ())
    value.immediateValue.tensor.strings.values.append(text)


def _replace(field: RepeatedCompositeFieldContainer[M], messages: Sequence[M]) -> None:
    copies = [type(message)() for message in messages]
    for copy, message in zip(copies, messages, strict=True):
        copy.CopyFrom(message)
    del field[:]
    field.extend(copies)
