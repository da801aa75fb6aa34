"""What the exporter does to the weights, in eager PyTorch: cast, quantize, dequantize.

The exporter casts the whole model to the artifact's dtype, splits linear layers by output rows,
quantizes the embedding, then every linear layer with torchao's `IntxWeightOnlyConfig`. A scale
covers one row, or 32 columns of one row, so that splitting by rows changes no value and is left
out here. The artifact's `constexpr_blockwise_shift_scale` multiplies data and scale in the same
dtype as torchao does: the results are equal bit for bit.

`output.weight` is a linear layer. Where it is tied to the embedding, both start from one tensor
and leave as two, quantized differently.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import HarnessError
from harness.models.config import LlamaConfig

if TYPE_CHECKING:
    from harness.export.options import ExportOptions

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
Scheme = tuple[int, int] | None
LINEAR_SCHEMES: dict[str, Scheme] = {"none": None, "b4w": (4, 32), "c4w": (4, 0)}
"""linear_quantize -> bits, and columns that share a scale (0: a whole row); None: as they are."""
_ROWS_AT_ONCE = 4096  # torchao makes fp32 copies: a vocabulary of them would take gigabytes


def schemes(config: LlamaConfig, options: ExportOptions) -> dict[str, Scheme]:
    """How an export quantizes each weight that it may quantize, by Meta name."""
    linear = LINEAR_SCHEMES[options.linear_quantize]
    return dict.fromkeys(config.linears, linear) | {
        "tok_embeddings.weight": options.embedding_scheme
    }


def exported_weights(
    weights: Mapping[str, torch.Tensor], config: LlamaConfig, options: ExportOptions
) -> dict[str, torch.Tensor]:
    """Weights as an artifact exported with these options holds them, dequantized.

    Same names and shapes as `weights`, in the artifact's dtype. Raises HarnessError when groups do
    not fit the model.
    """
    dtype = DTYPES[options.dtype]
    exported = {name: value.to(dtype) for name, value in weights.items()}
    if options.embedding_scheme is not None:
        name = "tok_embeddings.weight"
        exported[name] = quantize_dequantize(exported[name], *options.embedding_scheme)
    if (scheme := LINEAR_SCHEMES[options.linear_quantize]) is not None:
        for name in config.linears:
            exported[name] = quantize_dequantize(exported[name], *scheme)
    return exported


def quantize_dequantize(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Round weight [rows, columns] to 4-bit or 8-bit integers times scales, by torchao.

    One scale for each `group` columns of a row, or for the whole row when `group` is 0. The result
    has weight's dtype.
    """
    dequantized: torch.Tensor = _quantized(weight, bits, group).dequantize()
    return dequantized


def quantize(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round weight [rows, columns] as `quantize_dequantize` does.

    Returns the integers, int8 [rows, columns], and the scales in weight's dtype, [rows, 1] or
    [rows, columns / group]; zero stands for zero. Rows are quantized independently of each other.
    """
    chunks = [_quantized(chunk, bits, group) for chunk in weight.split(_ROWS_AT_ONCE)]
    return torch.cat([c.qdata for c in chunks]), torch.cat([c.scale for c in chunks])


def _quantized(weight: torch.Tensor, bits: int, group: int) -> Any:
    """The torchao tensor that a weight [rows, columns] becomes."""
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
    """torchao, imported at first use: it takes two seconds and logs what it cannot load."""
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
