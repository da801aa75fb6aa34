"""Finds the stage of the model's graph that a tensor holds, in any layout.

Programs hold one value in several layouts: with axes of size 1, with split or joined axes, with the
axes in another order. A tensor matches a stage when its elements, in order, are those of the stage
for some order of the stage's axes. A tensor with fewer elements may be a piece of a stage that
programs compute in pieces. Numbers agree when they differ by at most `TOLERANCE` of the stage's
largest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from harness.divergence.stages import Stage

TOLERANCE = 1e-7
"""Both sides compute in fp64; the largest difference measured is 1e-12, or 1e-9 where an `rsqrt`
adds its own 1e-12 to a small mean. One weight that is off by 1 % makes at least 1e-5."""


_MAX_STARTS = 16  # rows at which a piece may begin: more equal rows than this are padding


class Catalogue:
    """The stages of one call, found by their elements."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._by_count: dict[int, list[tuple[Stage, float]]] = {}
        for stage in stages:
            row = (stage, _sum(stage.tensor))
            self._by_count.setdefault(stage.tensor.numel(), []).append(row)
        self._cut = [stage for stage in stages if stage.cut is not None]

    def find(self, tensor: torch.Tensor) -> list[str]:
        """Return the names of the stages that a tensor matches, whole or as a piece."""
        total, count = _sum(tensor), tensor.numel()
        whole = [
            stage.name
            for stage, expected in self._by_count.get(count, [])
            if abs(total - expected) <= TOLERANCE * max(1.0, expected) * count
            and any(_close(tensor, layout) for layout in layouts(stage.tensor))
        ]
        if whole:
            return whole
        return [stage.name for stage in self._cut if _is_piece(tensor, stage)]

    def nearest(self, tensor: torch.Tensor) -> tuple[str, float] | None:
        """Return the nearest stage of the same size and the distance to it; None without one.

        The distance is a fraction of the stage's largest value.
        """
        found = [
            (distance(tensor, layout), stage.name)
            for stage, _ in self._by_count.get(tensor.numel(), [])
            for layout in layouts(stage.tensor)
        ]
        return min(found)[::-1] if found else None


def layouts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's elements in order, for each order of its axes."""
    squeezed = tensor.squeeze()
    for axes in itertools.permutations(range(squeezed.dim())):
        yield squeezed.permute(axes).reshape(-1)


def _close(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether all elements agree; an infinity agrees with itself only, NaN with nothing."""
    have = tensor.reshape(-1)
    if not expected.is_floating_point():
        return bool((have == expected).all())
    return bool(torch.isclose(have.double(), expected, 0.0, TOLERANCE * _largest(expected)).all())


def _is_piece(tensor: torch.Tensor, stage: Stage) -> bool:
    """Return whether a tensor is a range of a stage along the axis by which it may be cut."""
    if stage.cut is None or not 0 < tensor.numel() < stage.tensor.numel():
        return False
    whole = stage.tensor if stage.cut == 0 else stage.tensor.movedim(-1, 0)
    whole = whole.reshape(len(whole), -1)  # [n, elements per index of the axis]
    if tensor.numel() % whole.shape[1]:
        return False
    piece = tensor.reshape(-1, whole.shape[1])
    if stage.cut == -1:
        piece = tensor.reshape(whole.shape[1], -1).T
    allowed = TOLERANCE * _largest(whole)
    starts = ((whole - piece[0]).abs() <= allowed).all(1).nonzero().flatten().tolist()
    return any(
        start + len(piece) <= len(whole)
        and bool(((whole[start : start + len(piece)] - piece).abs() <= allowed).all())
        for start in starts[:_MAX_STARTS]
    )


def distance(tensor: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of elements, over the largest value of `expected` (1-D)."""
    have, want = tensor.reshape(-1).double(), expected.double()
    same = have == want  # equal infinities too, whose difference would be NaN
    error = torch.where(same, 0.0, (have - want).abs()).nan_to_num(nan=torch.inf)
    return float(error.max()) / (_largest(want) or 1.0) if error.numel() else 0.0


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().nan_to_num(posinf=0.0).max()) if tensor.numel() else 0.0


def _sum(tensor: torch.Tensor) -> float:
    """Return the sum of the finite magnitudes, which every layout shares."""
    return float(tensor.double().abs().nan_to_num(nan=0.0, posinf=0.0).sum())
