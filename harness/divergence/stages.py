"""Computes a model's graph in fp64 and finds the named values that a tensor holds.

`Graph` computes a call like `harness.models.model` and keeps each value as a `Stage`. Exporters
compute some things in different ways (RMSNorm with or without rescaling, keys repeated for grouped
heads); the values of each way are stages.

Programs hold one value in several layouts: with axes of size 1, with split or joined axes, with the
axes in another order. A tensor matches a stage when its elements, in order, are those of the stage
for some order of the stage's axes. A tensor with fewer elements may be a piece of a stage that
programs compute in pieces. Numbers agree when they differ by at most `TOLERANCE` of the stage's
largest.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.models import ModelConfig
from harness.models.model import Operations, evaluate_method

TOLERANCE = 1e-7
"""Both sides compute in fp64; the largest difference measured is 1e-12, or 1e-9 where an `rsqrt`
adds its own 1e-12 to a small mean. One weight that is off by 1 % makes at least 1e-5."""

_MAX_NEAR = 4  # stages that a value after the first divergence is compared with
_LAYER = re.compile(r"(?:^|[.\s])(?:layers|blocks|h)\.(\d{1,9})\b")
_ENDS = {
    "input": ("tok", "cosines", "sines", "mask"),
    "head": ("norm", "output", "hidden state", "last_valid_token_pos"),
}
_MAX_STARTS = 16  # rows at which a piece may begin: more equal rows than this are padding


@dataclass(frozen=True)
class Stage:
    """A value of the model's graph.

    `cut` is the axis, the first or the last, that programs may divide among several operations;
    None if they do not.
    """

    name: str
    tensor: torch.Tensor
    cut: int | None = None


class Graph(Operations):
    """Computes calls in fp64; `stages` are those of the last one, in the order of computing."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        """Take a model; the artifact holds epsilon and the attention's scale in its own `dtype`."""
        eps, scale = _held(config.norm_eps, dtype), _held(config.head_dim**-0.5, dtype)
        held = replace(config, norm_eps=eps, attention_scale=scale)
        super().__init__(held, weights, torch.float64)
        self._lowest = _held(math.sqrt(config.norm_eps), dtype)
        self._per_doubling = _held(1 / math.log(2), dtype)
        self.stages: list[Stage] = []

    @torch.inference_mode()
    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute a call; inputs and outputs are those of `StaticModel`, with floats in fp64."""
        self.stages = []
        return evaluate_method(self, inputs)

    def tap(self, name: str, value: torch.Tensor, cut: int | None = None) -> torch.Tensor:
        """Keep a value as a stage, and of masked scores what a guarded softmax asks of them."""
        self.stages.append(Stage(name, value, cut))
        if name.endswith("scores, masked"):
            hidden = value == -torch.inf
            empty = hidden.all(-1, True)
            zeros = torch.zeros_like(value)
            for what, asked in (
                ("hidden", hidden),
                ("seen", ~hidden),
                ("any seen", ~empty),
                ("none seen", empty),
                ("no attention", zeros),
            ):
                self.stages.append(Stage(f"{name}: {what}", asked))
        return value

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up tokens [T]; add the stages of the index."""
        self._index("tokens", tokens, self.config.vocab_size)
        return super().embed(tokens)

    def select(self, x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Take a position out of x [T, dim]; add the stages of the index."""
        self._index("last_valid_token_pos", last, x.shape[0])
        return super().select(x, last)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the RMSNorm of x; add the stages of x divided by a power of two too."""
        size = self.tap(f"{name}: |x|", x.abs())
        largest = self.tap(f"{name}: largest |x|", size.amax(-1, True))
        clamped = self.tap(f"{name}: largest |x|, in range", largest.clamp(self._lowest, 3e4))
        natural = self.tap(f"{name}: its logarithm", clamped.log())
        binary = self.tap(f"{name}: its binary logarithm", natural * self._per_doubling)
        exponent = self.tap(f"{name}: its exponent", binary.floor())
        scale = self.tap(f"{name}: its scale", exponent.exp2())
        once = self.tap(f"{name}: epsilon / scale", self.config.norm_eps / scale)
        eps = self.tap(f"{name}: epsilon / scale^2", once / scale)
        self.over_rms(f"{name} (scaled)", self.tap(f"{name}: x / scale", x / scale), eps)
        return super().norm(name, x)

    def join(self, name: str, past: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """Append to a cache [K, C, D]; add the result repeated for each query head."""
        joined = super().join(name, past, new)
        group = self.config.n_heads // self.config.n_kv_heads
        if group > 1:
            self.tap(f"{name}: repeated for its heads", joined.repeat_interleave(group, 0))
        return joined

    def attend(
        self, layer: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attend; add the scaled queries too, since some programs scale before the product."""
        self.tap(f"{layer}queries, scaled", q * self.config.scale)
        return super().attend(layer, q, k, v, mask)

    def _index(self, name: str, index: torch.Tensor, size: int) -> None:
        """Add the stages of an index: itself, and the values of wrapping a negative one around."""
        self.tap(name, index)
        self.tap(f"{name} >= 0", index >= 0)
        self.tap(f"{name}, counted from the end", index + size)


def _held(number: float, dtype: torch.dtype) -> float:
    """Round a constant as an artifact of this dtype does."""
    return float(torch.tensor(number, dtype=dtype))


class Catalogue:
    """The stages of one call, found by their elements."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._by_count: dict[int, list[tuple[Stage, float]]] = {}
        for stage in stages:
            row = (stage, _sum(stage.tensor))
            self._by_count.setdefault(stage.tensor.numel(), []).append(row)
        self._cut = [stage for stage in stages if stage.cut is not None]

    def find(self, tensor: torch.Tensor) -> dict[str, float]:
        """Return the stages that a tensor matches, whole or as a piece, and its distance to each.

        The distance is a fraction of the stage's largest value.
        """
        total, count = _sum(tensor), tensor.numel()
        whole: dict[str, float] = {}
        for stage, expected in self._by_count.get(count, []):
            if abs(total - expected) <= TOLERANCE * max(1.0, expected) * count:
                near = (_error(tensor, layout) for layout in layouts(stage.tensor))
                error = next((error for error in near if error <= TOLERANCE), None)
                if error is not None:
                    whole.setdefault(stage.name, error)
        if whole:
            return whole
        pieces = {stage.name: _piece_error(tensor, stage) for stage in self._cut}
        return {name: error for name, error in pieces.items() if error is not None}

    def nearest(
        self, tensor: torch.Tensor, layers: Collection[str] | None = None
    ) -> tuple[str, float] | None:
        """Return the nearest stage of the same size and the distance to it; None without one.

        With `layers`, only their stages count, and of these the few that have the nearest sums. The
        distance is a fraction of the stage's largest value.
        """
        rows = self._by_count.get(tensor.numel(), [])
        if layers is not None:
            total = _sum(tensor)
            rows = [row for row in rows if layer_of(row[0].name) in layers]
            rows = sorted(rows, key=lambda row: abs(row[1] - total))[:_MAX_NEAR]
        found = [
            (distance(tensor, layout), stage.name)
            for stage, _ in rows
            for layout in layouts(stage.tensor)
        ]
        return min(found)[::-1] if found else None


def layouts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's elements in order, for each order of its axes."""
    squeezed = tensor.squeeze()
    for axes in itertools.permutations(range(squeezed.dim())):
        yield squeezed.permute(axes).reshape(-1)


def layer_of(stage: str) -> str:
    """Return the layer of a stage by its name: "layer 3", "input", "head", or "" for others."""
    if found := _LAYER.search(stage):
        return f"layer {found[1]}"
    return next((layer for layer, starts in _ENDS.items() if stage.startswith(starts)), "")


def _error(tensor: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of elements; an infinity agrees with itself only, NaN with nothing.

    It is infinite where integers, or any from zeros, differ at all.
    """
    if expected.is_floating_point() and _largest(expected):
        return distance(tensor, expected)
    return 0.0 if bool((tensor.reshape(-1) == expected).all()) else math.inf


def _piece_error(tensor: torch.Tensor, stage: Stage) -> float | None:
    """Return the distance of a tensor to a range of a stage along the axis by which it may be cut.

    Return None when it is no such range.
    """
    is_shorter = 0 < tensor.numel() < stage.tensor.numel()
    if stage.cut is None or tensor.dtype == torch.bool or not is_shorter:
        return None
    whole = stage.tensor if stage.cut == 0 else stage.tensor.movedim(-1, 0)
    whole = whole.reshape(len(whole), -1)  # [n, elements per index of the axis]
    if tensor.numel() % whole.shape[1]:
        return None
    piece = tensor.reshape(-1, whole.shape[1])
    if stage.cut == -1:
        piece = tensor.reshape(whole.shape[1], -1).T
    largest = _largest(whole)
    allowed = TOLERANCE * largest
    starts = ((whole - piece[0]).abs() <= allowed).all(1).nonzero().flatten().tolist()
    for start in starts[:_MAX_STARTS]:
        if start + len(piece) <= len(whole):
            error = (whole[start : start + len(piece)] - piece).abs()
            if bool((error <= allowed).all()):
                return float(error.max()) / (largest or 1.0)
    return None


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
