"""Casts, quantizes and packs a model's weights, and stores them in a weight file."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.artifact.blob import Blob, WeightFile
from harness.export.filling import Stored, Weight
from harness.export.options import ExportOptions
from harness.export.plan import Piece
from harness.models import ModelConfig
from harness.models.quantize import DTYPES, quantize

_MIL_NAMES = {torch.float16: "FLOAT16", torch.float32: "FLOAT32"}


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
