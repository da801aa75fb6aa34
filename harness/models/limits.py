"""Weights that an export cannot hold, and would make NaN of without a word."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from harness.models.quantize import DTYPES, Scheme


def beyond(
    weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme], dtype: str
) -> Iterator[str]:
    """A sentence for each weight that holds NaN or infinity, or becomes infinite in `dtype`.

    Schemes are by the names of `weights`. One pass over each weight, and no copy of it.
    """
    largest = torch.finfo(DTYPES[dtype]).max
    for name, weight in weights.items():
        low, high = ends = [float(end) for end in weight.aminmax()]  # NaN, where there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"{name} holds {'NaN' if math.isnan(low) else 'an infinity'}"
            continue
        low, high = _cast(low, dtype), _cast(high, dtype)
        lowest = _cast(_lowest(low, high, schemes.get(name)), dtype)
        if not (math.isfinite(lowest) and math.isfinite(high)):
            most = max(map(abs, ends))
            yield f"{name} reaches {most:.6g}, too much for {dtype}, which ends at {largest:.6g}"


def _cast(value: float, dtype: str) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(DTYPES[dtype]))


def _lowest(low: float, high: float, scheme: Scheme) -> float:
    """What the lowest value may become: 4-bit integers reach down to -8 scales, which are 1/7.5."""
    if scheme is None:
        return low
    bits, _ = scheme
    return low * 2**bits / (2**bits - 1) if -low >= high else low
