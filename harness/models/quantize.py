"""Casts, quantizes and dequantizes weights in eager PyTorch, as the exporter does.

The exporter casts the whole model to the artifact's dtype, splits linear layers by output rows,
then quantizes the embedding and every linear layer with torchao's `IntxWeightOnlyConfig`. A scale
covers one row, or 32 columns of one row. Splitting by rows therefore changes no value, and this
module omits it. The artifact's `constexpr_blockwise_shift_scale` multiplies data and scale in the
same dtype as torchao: the results are equal bit for bit.

`output.weight` is a linear layer. If it is tied to the embedding, one tensor is quantized twice, in
two ways, and the artifact holds both results.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from harness.artifact import Artifact
from harness.artifact.proto import mil_types
from harness.errors import ArtifactError, HarnessError
from harness.models import ModelConfig, Quantization, Scheme

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_BITS = {"INT8": 8, "INT4": 4}
_LINEAR_SCHEMES = (None, (4, 0), (4, 32))
_ROWS_AT_ONCE = 4096  # torchao makes fp32 copies: those of a whole vocabulary would take gigabytes


def exported_weights(
    weights: Mapping[str, torch.Tensor], config: ModelConfig, quantization: Quantization
) -> dict[str, torch.Tensor]:
    """Return the dequantized weights of an artifact with this quantization.

    Names and shapes are those of `weights`, the dtype is the artifact's. Raises HarnessError when
    groups do not fit the model.
    """
    schemes = quantization.schemes(config)
    return {
        name: exported_weight(weight, quantization.dtype, schemes.get(name))
        for name, weight in weights.items()
    }


def exported_weight(weight: torch.Tensor, dtype: str, scheme: Scheme) -> torch.Tensor:
    """Return one weight, cast to `dtype`, then quantized and dequantized if it has a scheme."""
    cast = weight.to(DTYPES[dtype])
    return cast if scheme is None else quantize_dequantize(cast, *scheme)


def quantize_dequantize(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Round weight [rows, columns] to 4-bit or 8-bit integers times scales, by torchao.

    Each `group` columns of a row share a scale; a `group` of 0 is the whole row. The result has
    weight's dtype.
    """
    made = torch.empty_like(weight)
    for rows, some in zip(weight.split(_ROWS_AT_ONCE), made.split(_ROWS_AT_ONCE), strict=True):
        some.copy_(_quantized(rows, bits, group).dequantize())
    return made


def quantize(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round weight [rows, columns] as `quantize_dequantize` does.

    Return the integers, int8 [rows, columns], and the scales in weight's dtype, [rows, 1] or
    [rows, columns / group]; the zero point is 0. Each row is quantized independently.
    """
    chunks = [_quantized(chunk, bits, group) for chunk in weight.split(_ROWS_AT_ONCE)]
    return torch.cat([c.qdata for c in chunks]), torch.cat([c.scale for c in chunks])


def _quantized(weight: torch.Tensor, bits: int, group: int) -> Any:
    """Return a weight [rows, columns] as a quantized tensor of torchao."""
    rows, columns = weight.shape
    if group and columns % group:
        raise HarnessError(f"groups of {group} do not fill a row of {columns} columns")
    # a bare layer, because that is what torchao's public entry point takes
    layer = torch.nn.Linear(columns, rows, bias=False, device="meta", dtype=weight.dtype)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    _quantizer()(layer, bits, group)
    return layer.weight


@functools.cache
def _quantizer() -> Callable[[torch.nn.Module, int, int], None]:
    """Return torchao's quantizer, imported on first use.

    The import takes two seconds, and torchao logs which extensions it cannot load.
    """
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization.granularity import PerAxis, PerGroup
        from torchao.quantization.quant_api import IntxWeightOnlyConfig, quantize_
    finally:
        logging.disable(logging.NOTSET)

    def quantize(module: torch.nn.Module, bits: int, group: int) -> None:
        granularity = PerGroup(group) if group else PerAxis(0)
        quantize_(
            module,
            IntxWeightOnlyConfig(
                weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity
            ),
        )

    return quantize


def read_scheme(artifact: Artifact, dtype: str) -> Quantization:
    """Return how an artifact of this `dtype` quantizes its weights, read from its programs.

    Raises ArtifactError when its linear layers are quantized in more than one way, or in a way that
    the exporter does not support.
    """
    found: dict[str, set[Scheme]] = {"gather": set(), "linear": set()}
    for bundle in artifact.bundles:
        for name in bundle.package.functions:
            for kind, scheme in _schemes(bundle.package.operations(name)):
                found[kind].add(scheme)
    for kind, schemes in found.items():
        if len(schemes) != 1:
            raise ArtifactError(
                f"{artifact.path}: the weights of its {kind} operations are quantized in "
                f"{len(schemes)} ways; one is expected"
            )
    embedding, linear = found["gather"].pop(), found["linear"].pop()
    if linear not in _LINEAR_SCHEMES:
        raise ArtifactError(f"{artifact.path}: linears of {linear} (bits, group) are unknown")
    if embedding is not None and embedding[0] not in _BITS.values():
        raise ArtifactError(f"{artifact.path}: embeddings of {embedding} (bits, group) are unknown")
    return Quantization(dtype, embedding, linear)


def _schemes(block: Any) -> Iterator[tuple[str, Scheme]]:
    """Yield (operation type, scheme) of each weight matrix that a block multiplies or gathers."""
    makers = {output.name: op for op in block.operations for output in op.outputs}
    for operation in block.operations:
        parameter = {"linear": "weight", "gather": "x"}.get(operation.type)
        if parameter is None:
            continue
        maker = makers.get(operation.inputs[parameter].arguments[0].name)
        if maker is not None and maker.type == "const":
            yield operation.type, None
        elif maker is not None and maker.type == "constexpr_blockwise_shift_scale":
            data, scale = (_tensor_type(maker, makers, name) for name in ("data", "scale"))
            columns, scales = (t.dimensions[-1].constant.size for t in (data, scale))
            group = 0 if scales == 1 else columns // max(scales, 1)
            yield operation.type, (_BITS.get(mil_types()[data.dataType].name, 0), group)


def _tensor_type(operation: Any, makers: dict[str, Any], parameter: str) -> Any:
    binding = operation.inputs[parameter].arguments[0]
    if binding.WhichOneof("binding") == "value":
        return binding.value.type.tensorType
    return makers[binding.name].outputs[0].type.tensorType
