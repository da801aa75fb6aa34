"""What a subject is fed: ordinary values, and kinds of values at which executors differ."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

ORDINARY = "ordinary"
EXTREMES = ("zeros", "large", "denormal", "infinities", "nan")
KINDS = (ORDINARY, *EXTREMES, "ties")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_POOL = 8  # values of a kind; two operands meet in all pairs of 64 elements
_PLAIN = (1.0, -2.0, 0.5, 3.0, -0.25, 0.75, -1.0)


@dataclass(frozen=True)
class Given:
    """An input: floats in a range, `ids` below a number, or what `fixed` names.

    `fixed` is `cos` or `sin`, of RoPE; or `mask`, 0 or -inf, causal after a cache that is full.
    """

    shape: tuple[int, ...]
    low: float = -3.0
    high: float = 3.0
    ids: int = 0
    fixed: str = ""


def drawn(given: Given, kind: str, precision: str, place: int, name: str) -> Tensor:
    """Return the values of one input of the subject `name`, the same in each process."""
    if given.fixed:
        return _fixed(given).to(DTYPES[precision])
    seed = zlib.crc32(f"{name} {place}".encode())
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(given.shape).numel()
    if given.ids:
        ids = torch.randint(given.ids, (count,), generator=generator, dtype=torch.int32)
        ids[0], ids[-1] = 0, given.ids - 1  # the first id and the last
        return ids.reshape(given.shape)
    dtype = DTYPES[precision]
    flat = torch.rand(count, generator=generator) * (given.high - given.low) + given.low
    flat = flat.to(dtype)
    if kind == ORDINARY:
        return flat.reshape(given.shape)
    if len(given.shape) == 1:  # element-wise: nothing but the pool
        pool = torch.tensor((*_extremes(kind, dtype), *_PLAIN)[:_POOL], dtype=dtype)
        return pool[(torch.arange(count) // _POOL**place) % _POOL]
    values = torch.tensor(_extremes(kind, dtype, single=False), dtype=dtype)
    places = torch.arange(0, (count + 1) // 2, 3)  # some rows hold none of them
    flat[places] = values[torch.arange(len(places)) % len(values)]
    return flat.reshape(given.shape)


def _fixed(given: Given) -> Tensor:
    rows, columns = torch.arange(given.shape[0])[:, None], torch.arange(given.shape[1])
    if given.fixed == "mask":
        hidden = columns > rows + given.shape[1] - given.shape[0]
        return torch.zeros(given.shape).masked_fill(hidden, -torch.inf)
    angles = rows * 0.1 ** (2 * columns / given.shape[1])
    return angles.cos() if given.fixed == "cos" else angles.sin()


def _extremes(kind: str, dtype: torch.dtype, single: bool = True) -> tuple[float, ...]:
    """Return the values of a kind; those that are not `single` can be squared and summed."""
    info = torch.finfo(dtype)
    step = info.smallest_normal * info.eps  # the smallest denormal
    match kind:
        case "zeros":
            return (0.0, -0.0)
        case "large" if single:
            half, root = info.max / 2, info.max**0.5
            return (info.max, -info.max, half, -half, root, -root, 2 / info.eps + 2)
        case "large":
            root = info.max**0.5 / 16
            return (root, -root, root / 2)
        case "overflow":  # the square of one is beyond the dtype
            root = info.max**0.5
            return (1.5 * root, -2.0 * root)
        case "denormal":
            tiny = info.smallest_normal
            return (step, -step, 3 * step, tiny, -tiny, tiny / 2, -0.75 * tiny)
        case "infinities":
            return (torch.inf, -torch.inf)
        case "nan":
            return (torch.nan,)
        case _:
            return (0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.5, -3.5)
