"""What devices were seen to do wrong, made small: patterns that the lints of hazards must name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.suites.mutants.program import (
    Lowered,
    Program,
    Traced,
    conversion,
    mb,
    report,
)

ROWS = np.array([[1], [2], [3], [4]], np.float16)
WEIGHT = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def pattern(
    name: str, sentence: str, *reports: str, shape: tuple[int, ...] = (3, 3), target: str = "iOS17"
) -> Callable[[Callable[[Any, bool], Any]], object]:
    """Return a decorator: a row for a function of one input and of whether it is broken."""

    def add(function: Callable[[Any, bool], Any]) -> object:
        return report(name, {"hazards": sentence}, *reports)(
            lambda broken: Program(
                lambda x: function(x, broken), [("fp32", shape)], target=target, precision="FLOAT16"
            )
        )

    return add


@pattern("a band that falls off the Neural Engine", "^H42 band_part", "ET 4091")
def _band(x: Any, broken: bool) -> Any:
    return mb().band_part(x=x, lower=-1, upper=0) if broken else mb().mul(x=x, y=np.tri(3))


@pattern("random numbers", "^H43 random_normal", "ET 11722")
def _random(x: Any, broken: bool) -> Any:
    noise = mb().random_normal(shape=[3], seed=1) if broken else np.ones(3, np.float32)
    return mb().add(x=x, y=noise)


@pattern("a search over everything", "^H44 reduce_argmax", "ET 11722")
def _search(x: Any, broken: bool) -> Any:
    if broken:
        return mb().reduce_argmax(x=mb().reshape(x=x, shape=[-1]), axis=0)
    return mb().reduce_argmax(x=x, axis=1)


@pattern("a select of unequal shapes", "^H31 select", "U23")
def _select(x: Any, broken: bool) -> Any:
    zero = np.float32(0) if broken else mb().mul(x=x, y=np.float32(0))
    return mb().select(cond=mb().greater(x=x, y=np.float32(0)), a=x, b=zero)


@pattern("a linear that is too wide", "^H41 linear", "ET 15833", shape=(1, 8))
def _wide(x: Any, broken: bool) -> Any:
    rows = 16385 if broken else 16384
    return mb().linear(x=x, weight=np.ones((rows, 8), np.float32))


@pattern(
    "fused attention of a converter",
    "^H39 scaled",
    "U19",
    "ET 15833",
    shape=(1, 2, 8, 16),
    target="iOS18",
)
def _fused(x: Any, broken: bool) -> Any:
    if broken:
        return mb().scaled_dot_product_attention(query=x, key=x, value=x)
    scores = mb().mul(x=mb().matmul(x=x, y=x, transpose_y=True), y=np.float32(0.25))
    return mb().matmul(x=mb().softmax(x=scores, axis=-1), y=x)


@pattern("attention over a large batch", "^H40 softmax", "ET 4091", shape=(10, 2, 8, 16))
def _batch(x: Any, broken: bool) -> Any:
    if not broken:
        x = mb().slice_by_index(x=x, begin=[0, 0, 0, 0], end=[9, 2, 8, 16])
    scores = mb().matmul(x=x, y=x, transpose_y=True)
    return mb().matmul(x=mb().softmax(x=scores, axis=-1), y=x)


@report("signed 8-bit weights", {"hazards": "^H35 constexpr_affine_dequantize"}, "U29")
def signed_weights(broken: bool) -> Program:
    """Quantize weights to int8 with zero point 0; soundly, to uint8 with 127."""

    def compress(model: Any) -> Any:
        import coremltools.optimize.coreml as cto

        dtype = np.int8 if broken else np.uint8
        config = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=dtype, weight_threshold=0
        )
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))

    return Program(_linear, [("fp32", (2, 64))], target="iOS16", compress=compress)


@report("a scale over a palette", {"hazards": "^H36 constexpr_blockwise_shift_scale"}, "CT 2688")
def scaled_palette(broken: bool) -> Program:
    """Palettize weights to 4 bits with a scale for each channel; soundly, without."""

    def compress(model: Any) -> Any:
        import coremltools.optimize.coreml as cto

        config = cto.OpPalettizerConfig(
            nbits=4, enable_per_channel_scale=broken, weight_threshold=0
        )
        return cto.palettize_weights(model, cto.OptimizationConfig(global_config=config))

    return Program(_linear, [("fp32", (2, 64))], target="iOS18", compress=compress)


def _linear(x: Any) -> Any:
    return mb().linear(x=x, weight=WEIGHT)


@report("an output that is also a state", {"hazards": "^H33 output"}, "U25")
def output_and_state(broken: bool) -> Program:
    """Return what is written to a state; soundly, its double."""

    def function(x: Any, cache: Any) -> Any:
        value = mb().add(x=mb().read_state(input=cache), y=x)
        mb().coreml_update_state(state=cache, value=value)
        return value if broken else mb().mul(x=value, y=np.float16(2))

    return Program(
        function, [("fp16", (1, 32))], target="iOS18", states=[(1, 32)], precision="FLOAT16"
    )


@report("flexible inputs of two kinds", {"hazards": "^H45"}, "CT 2730")
def mixed_flexibility(broken: bool) -> Traced:
    """List the shapes of one input and give the other a range; soundly, give both a range."""

    def inputs() -> list[Any]:
        import coremltools as ct

        def ranged() -> Any:
            return ct.Shape((1, ct.RangeDim(1, 8, default=2), 4))

        listed = ct.EnumeratedShapes([[1, 2, 4], [1, 6, 4]])
        shapes = (listed if broken else ranged(), ranged())
        return [ct.TensorType(name=n, shape=s) for n, s in zip("ab", shapes, strict=True)]

    return Traced(lambda a, b: a.sum(1) + b.sum(1), [torch.ones(1, 2, 4)] * 2, inputs)


@report("a state row that is one late", {"outputs": "is off by"}, "U21")
def late_row(broken: bool) -> Program:
    """Write a key to the row behind the current one, and attend over all rows by their numbers."""

    def function(x: Any, position: Any, cache: Any) -> Any:
        start = mb().add(x=position, y=np.int32(1)) if broken else position
        zero = np.array([0], np.int32)
        begin = mb().concat(values=[start, zero], axis=0)
        end = mb().concat(
            values=[mb().add(x=start, y=np.int32(1)), np.array([2], np.int32)], axis=0
        )
        held = mb().read_state(input=cache)
        update = mb().cast(x=x, dtype="fp16")
        written = mb().slice_update(x=held, update=update, begin=begin, end=end)
        kept = mb().coreml_update_state(state=cache, value=written)
        weights = mb().softmax(x=mb().matmul(x=update, y=kept, transpose_y=True), axis=-1)
        by_row = mb().mul(x=kept, y=ROWS)
        return mb().cast(x=mb().matmul(x=weights, y=by_row), dtype="fp32")

    calls, held = [], torch.zeros(4, 2)
    for step in range(3):
        x = torch.tensor([[1.0 + step, 0.5]])
        held[step] = x
        calls.append(
            (
                [x, np.array([step], np.int32)],
                [(x @ held.T).softmax(-1) @ (held * torch.from_numpy(ROWS))],
            )
        )
    inputs = [("fp32", (1, 2)), ("int32", (1,))]
    return Program(function, inputs, calls, target="iOS18", states=[(4, 2)])


@conversion("grouped attention that does not convert", {"convert": "repeat_interleave"}, "U18")
def grouped_attention(broken: bool) -> Traced:
    """Let attention group heads itself; soundly, repeat keys and values."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not broken:
            k, v = (one.repeat_interleave(4, 1) for one in (k, v))
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, enable_gqa=True) if broken else attention(q, k, v)

    example = [torch.rand(1, heads, 16, 32) for heads in (8, 2, 2)]
    return Traced(attend, example, partial(_typed, example))


@conversion("a scale for each channel of an image", {"convert": "inside the model"}, "U30")
def image_scale(broken: bool) -> Traced:
    """Give an image a scale for each channel; soundly, one scale."""

    def inputs() -> list[Any]:
        import coremltools as ct

        scale = [1 / 127.5, 1 / 255, 1.0] if broken else 1 / 255
        return [ct.ImageType(name="x", shape=(1, 3, 8, 8), scale=scale, bias=[0, 0, 0])]

    return Traced(lambda x: x * 2, [torch.rand(1, 3, 8, 8)], inputs)


@conversion("bytes through ExecuTorch's partitioner", {"convert": "cast them"}, "U32")
def bytes_through_executorch(broken: bool) -> Lowered:
    """Lower a model of uint8 inputs; soundly, of int32."""
    return Lowered(torch.ones(3, dtype=torch.uint8 if broken else torch.int32))


class Numpy24(Traced):
    """A function that is converted as with numpy 2.4: what numpy 2.3 warns of is a TypeError."""

    def save(self, path: Path) -> Path:
        """Convert it by coremltools and save it as a package."""
        try:
            return super().save(path)
        except DeprecationWarning as error:
            raise TypeError("only 0-dimensional arrays can be converted to scalars") from error


@conversion("sizes that numpy 2.4 does not convert", {"convert": "numpy<2.4"}, "U24")
def free_sizes(broken: bool) -> Traced:
    """View an input by the sizes that it has; soundly, by numbers."""

    def views(x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape if broken else (1, 4, 8)
        return x.view(b, t, 2, c // 2)

    example = [torch.rand(1, 4, 8)]
    inputs = partial(_typed, example)
    return Numpy24(views, example, inputs, forbidden="Conversion of an array with ndim > 0")


def _typed(example: list[torch.Tensor]) -> list[Any]:
    import coremltools as ct

    return [ct.TensorType(name=f"x{i}", shape=one.shape) for i, one in enumerate(example)]
