"""Finds the stage of the model's graph that a tensor holds, whatever its shape.

Programs hold one value in several layouts: with axes of size 1, split or joined axes, axes in
another order. A tensor is a stage when its elements in order are those of the stage with its axes
in some order; a tensor with fewer elements can be a piece of a stage that may be computed in
pieces. Numbers agree when they differ by at most `TOLERANCE` of the stage's largest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from harness.divergence.stages import Stage

TOLERANCE = 1e-7
"""Both sides compute in fp64, where the largest differences seen are 1e-12; an `rsqrt` that adds
its own 1e-12 to a small mean makes 1e-9. One weight off by 1 % makes 1e-5 and more."""


_MOST_STARTS = 16  # places where a piece may begin: more than that many equal rows are padding


class Catalogue:
    """The stages of one call, found by their elements."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._by_count: dict[int, list[tuple[Stage, float]]] = {}
        for stage in stages:
            row = (stage, _sum(stage.tensor))
            self._by_count.setdefault(stage.tensor.numel(), []).append(row)
        self._cut = [stage for stage in stages if stage.cut is not None]

    def find(self, tensor: torch.Tensor) -> list[str]:
        """Return the names of the stages that a tensor is, or is a piece of."""
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
        """Return the stage that a tensor differs from the least, and by how much of its largest
        value; None when none has as many elements."""
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
    """Whether elements agree; infinities only with themselves, NaN with nothing."""
    have = tensor.reshape(-1)
    if not expected.is_floating_point():
        return bool((have == expected).all())
    return bool(torch.isclose(have.double(), expected, 0.0, TOLERANCE * _largest(expected)).all())


def _is_piece(tensor: torch.Tensor, stage: Stage) -> bool:
    """Whether a tensor is a range of the axis along which a stage may be cut."""
    if stage.cut is None or not 0 < tensor.numel() < stage.tensor.numel():
        return False
    whole = stage.tensor if stage.cut == 0 else stage.tensor.movedim(-1, 0)
    whole = whole.reshape(len(whole), -1)  # [n, what one index of the axis holds]
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
        for start in starts[:_MOST_STARTS]
    )


def distance(tensor: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of elements over the largest one expected, which is one axis."""
    have, want = tensor.reshape(-1).double(), expected.double()
    same = have == want  # equal infinities too, whose difference would be NaN
    error = torch.where(same, 0.0, (have - want).abs()).nan_to_num(nan=torch.inf)
    return float(error.max()) / (_largest(want) or 1.0) if error.numel() else 0.0


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().nan_to_num(posinf=0.0).max()) if tensor.numel() else 0.0


def _sum(tensor: torch.Tensor) -> float:
    """The sum of finite magnitudes: the same in every layout."""
    return float(tensor.double().abs().nan_to_num(nan=0.0, posinf=0.0).sum())
