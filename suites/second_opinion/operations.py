"""A row for each operation that both converters have: the function, its inputs and its measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.suites.second_opinion.values import EXTREMES, KINDS, ORDINARY, Given


@dataclass(frozen=True)
class Subject:
    """A module, its inputs, the kinds of values that it is fed, and how its outputs are compared.

    `bounds` are those of `measure` in fp32 and in fp16; see `compare.measured`. Our executor is
    compared with `documented`, where the operation that coremltools chooses computes another
    function than PyTorch by MIL's documents.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[Given, ...]
    measure: str
    bounds: tuple[float, float]
    kinds: tuple[str, ...] = (ORDINARY, *EXTREMES)
    group: str = ""
    documented: Callable[..., Any] | None = None

    def bound(self, precision: str) -> float:
        """Return the bound of a precision."""
        return self.bounds[precision == "fp16"]


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the function returns."""
        return self.function(*inputs)


_ROUNDED = (0.5, 0.5)  # ulp: one correct rounding
_CLOSE = (4.0, 1.0)  # ulp: an approximation; in fp16, of a value that is computed wider
_STEPS = (1e-6, 4 * 2.0**-11)  # of the largest
_SUMS = (2e-6, 4 * 2.0**-11)  # of the largest: sums of some dozens of terms
_EXACT = (0.0, 0.0)
_LINE, _PAIR = (Given((64,)),), (Given((64,)), Given((64,)))
_MATRIX, _CUBE = (Given((6, 10)),), (Given((2, 4, 6)),)
_IMAGE = (Given((2, 4, 8, 8)),)


def _whole(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function with a result in the dtype of its first operand."""
    return lambda x, *others: function(x, *others).to(x.dtype)


def _unary(
    function: Callable[[Tensor], Tensor],
    bounds: tuple[float, float] = _CLOSE,
    given: Given = _LINE[0],
    kinds: tuple[str, ...] = (ORDINARY, *EXTREMES),
    documented: Callable[[Tensor], Tensor] | None = None,
) -> Subject:
    make = lambda: Function(function)  # noqa: E731
    return Subject(make, (given,), "ulp", bounds, kinds, "element-wise", documented)


def _activation(
    function: Callable[[Tensor], Tensor], documented: Callable[[Tensor], Tensor] | None = None
) -> Subject:
    """Return the row of a function of several steps, some of which cancel."""
    make = lambda: Function(function)  # noqa: E731
    return Subject(make, _LINE, "relative", _STEPS, group="activations", documented=documented)


def _thresholded_swish(x: Tensor) -> Tensor:
    """Return what coremltools makes of `hardswish`; `thresholded_relu` gives 0 for NaN."""
    above = torch.where(x >= -3, x, 0.0)
    return above * torch.clamp(above / 6 + 0.5, 0, 1)


def _log_of_softmax(x: Tensor) -> Tensor:
    """Return what coremltools makes of `log_softmax`; `log` adds its epsilon."""
    return torch.log(torch.softmax(x, -1) + 2.0**-149)


def _binary(
    function: Callable[[Tensor, Tensor], Tensor], bounds: tuple[float, float] = _ROUNDED
) -> Subject:
    return Subject(lambda: Function(function), _PAIR, "ulp", bounds, KINDS, "two operands")


def _moved(
    function: Callable[..., Any], inputs: tuple[Given, ...] = _CUBE, group: str = "data movement"
) -> Subject:
    return Subject(lambda: Function(function), inputs, "exact", _EXACT, group=group)


def _summed(
    make: Callable[[], nn.Module],
    inputs: tuple[Given, ...] = _MATRIX,
    group: str = "reductions",
    bounds: tuple[float, float] = _SUMS,
) -> Subject:
    return Subject(make, inputs, "relative", bounds, group=group)


def _reduced(function: Callable[..., Any], inputs: tuple[Given, ...] = _MATRIX) -> Subject:
    return _summed(lambda: Function(function), inputs)


def _layer(make: Callable[[], nn.Module], inputs: tuple[Given, ...], group: str) -> Subject:
    """Return the row of a layer with seeded parameters."""

    def seeded() -> nn.Module:
        torch.manual_seed(5)
        module = make()
        with torch.no_grad():
            for value in (*module.parameters(), *_statistics(module)):
                value.add_(0.2 * torch.rand(value.shape))
        return module

    return _summed(seeded, inputs, group)


def _statistics(module: nn.Module) -> list[Tensor]:
    return [value for value in module.buffers() if value.is_floating_point()]


_POSITIVE = Given((64,), 0.01, 9.0)
_UNIT = Given((64,), -0.99, 0.99)
_SMALL_LINE = Given((64,), -2.0, 2.0)

_ELEMENT_WISE: dict[str, Subject] = {
    "abs": _unary(torch.abs, _ROUNDED),
    "neg": _unary(torch.neg, _ROUNDED),
    "sign": _unary(torch.sign, _ROUNDED),
    "square": _unary(torch.square, _ROUNDED),
    "sqrt": _unary(torch.sqrt, _ROUNDED, _POSITIVE),
    "rsqrt": _unary(torch.rsqrt, _CLOSE, _POSITIVE, documented=lambda x: torch.rsqrt(x + 1e-12)),
    "reciprocal": _unary(torch.reciprocal, _CLOSE, documented=lambda x: torch.reciprocal(x + 1e-4)),
    "floor": _unary(torch.floor, _ROUNDED, kinds=KINDS),
    "ceil": _unary(torch.ceil, _ROUNDED, kinds=KINDS),
    "round": _unary(torch.round, _ROUNDED, kinds=KINDS),
    "trunc": _unary(torch.trunc, _ROUNDED, kinds=KINDS),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "log": _unary(torch.log, _CLOSE, _POSITIVE, documented=lambda x: torch.log(x + 2.0**-149)),
    "log1p": _unary(torch.log1p, _CLOSE, _POSITIVE),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "tan": _unary(torch.tan),
    "asin": _unary(torch.asin, _CLOSE, _UNIT),
    "acos": _unary(torch.acos, _CLOSE, _UNIT),
    "atan": _unary(torch.atan),
    "sinh": _unary(torch.sinh),
    "cosh": _unary(torch.cosh),
    "tanh": _unary(torch.tanh),
    "atanh": _unary(torch.atanh, _CLOSE, _UNIT),
    "erf": _unary(torch.erf),
    "relu": _unary(torch.relu, _ROUNDED),
    "relu6": _unary(functional.relu6, _ROUNDED),
    "leaky_relu": _unary(lambda x: functional.leaky_relu(x, 0.125), _ROUNDED),
    "elu": _activation(functional.elu),
    "gelu": _activation(functional.gelu),
    "gelu-tanh": _activation(lambda x: functional.gelu(x, approximate="tanh")),
    "silu": _activation(functional.silu),
    "sigmoid": _unary(torch.sigmoid),
    "hardsigmoid": _activation(functional.hardsigmoid),
    "hardswish": _activation(functional.hardswish, _thresholded_swish),
    "softplus": _activation(functional.softplus),
    "softsign": _activation(functional.softsign),
    "clamp": _unary(lambda x: torch.clamp(x, -1.0, 1.5), _ROUNDED),
    "to-int": _unary(
        _whole(lambda x: x.to(torch.int32)), _ROUNDED, kinds=(ORDINARY, "zeros", "ties")
    ),
    "to-bool": _unary(_whole(lambda x: x.to(torch.bool)), _ROUNDED),
    "to-fp16": _unary(_whole(lambda x: x.to(torch.float16)), (2.0**13, 0.5), kinds=KINDS),
    "isnan": _unary(_whole(torch.isnan), _ROUNDED),
    "logical_not": _unary(_whole(torch.logical_not), _ROUNDED),
}

_TWO: dict[str, Subject] = {
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "pow": _binary(torch.pow, _CLOSE),
    "floor_divide": _binary(torch.floor_divide),
    "remainder": _binary(torch.remainder),
    "equal": _binary(_whole(torch.eq)),
    "not_equal": _binary(_whole(torch.ne)),
    "less": _binary(_whole(torch.lt)),
    "less_equal": _binary(_whole(torch.le)),
    "greater": _binary(_whole(torch.gt)),
    "greater_equal": _binary(_whole(torch.ge)),
    "logical_and": _binary(_whole(torch.logical_and)),
    "logical_or": _binary(_whole(torch.logical_or)),
    "logical_xor": _binary(_whole(torch.logical_xor)),
    "select": _binary(lambda x, y: torch.where(x > y, x, y)),
    "masked_fill": _binary(lambda x, y: x.masked_fill(y > 0, -10.0)),
}

_REDUCED: dict[str, Subject] = {
    "sum": _reduced(lambda x: x.sum(-1)),
    "mean": _reduced(lambda x: x.mean(-1)),
    "mean-all": _reduced(lambda x: x.mean((0, 1), keepdim=True)),
    "prod": _reduced(lambda x: x.prod(-1), (Given((6, 5), 0.5, 1.5),)),
    "amax": _moved(lambda x: x.amax(-1), _MATRIX, "reductions"),
    "amin": _moved(lambda x: x.amin(-1), _MATRIX, "reductions"),
    "argmax": _moved(lambda x: x.argmax(-1).to(x.dtype), _MATRIX, "reductions"),
    "argmin": _moved(lambda x: x.argmin(-1).to(x.dtype), _MATRIX, "reductions"),
    "sum-of-squares": _reduced(lambda x: (x * x).sum(-1)),
    "l2-norm": _reduced(lambda x: torch.linalg.vector_norm(x, 2, -1)),
    "l1-norm": _reduced(lambda x: torch.linalg.vector_norm(x, 1, -1)),
    "logsumexp": _reduced(lambda x: torch.logsumexp(x, -1)),
    "cumsum": _reduced(lambda x: torch.cumsum(x, -1)),
    "variance": _reduced(lambda x: x.var(-1, unbiased=False)),
    "softmax": _reduced(lambda x: torch.softmax(x, -1)),
    "softmax-first-axis": _reduced(lambda x: torch.softmax(x, 0)),
    "log_softmax": replace(
        _reduced(lambda x: torch.log_softmax(x, -1)), documented=_log_of_softmax
    ),
    "sort": _moved(lambda x: torch.sort(x, -1).values, _MATRIX, "reductions"),
    "topk": _moved(lambda x: torch.topk(x, 3, -1).values, _MATRIX, "reductions"),
}

_IDS = Given((5,), ids=10)
_MOVED: dict[str, Subject] = {
    "concat": _moved(lambda x, y: torch.cat([x, y], 1), (*_CUBE, Given((2, 3, 6)))),
    "stack": _moved(lambda x, y: torch.stack([x, y], 1), _CUBE * 2),
    "slice": _moved(lambda x: x[:, 1:3, 2:]),
    "slice-steps": _moved(lambda x: x[:, ::2, 1::3]),
    "slice-from-the-end": _moved(lambda x: x[..., -2:]),
    "split": _moved(lambda x: torch.split(x, [1, 3], 1)),
    "chunk": _moved(lambda x: torch.chunk(x, 2, -1)),
    "transpose": _moved(lambda x: x.permute(2, 0, 1)),
    "reshape": _moved(lambda x: x.reshape(3, -1)),
    "squeeze": _moved(lambda x: x[:, :1].squeeze(1).unsqueeze(-1)),
    "flip": _moved(lambda x: x.flip(-1)),
    "repeat": _moved(lambda x: x.repeat(2, 1, 3)),
    "expand": _moved(lambda x: x[:, :1].expand(2, 5, 6).contiguous()),
    "roll": _moved(lambda x: torch.roll(x, 2, -1)),
    "tril": _moved(lambda x: torch.tril(x)),
    "pad-constant": _moved(lambda x: functional.pad(x, (1, 2), value=-1.5)),
    "pad-reflect": _moved(lambda x: functional.pad(x, (2, 1), mode="reflect")),
    "pad-replicate": _moved(lambda x: functional.pad(x, (2, 1), mode="replicate")),
    "embedding": _moved(lambda i, x: functional.embedding(i, x), (_IDS, Given((10, 4)))),
    "index_select": _moved(lambda x, i: torch.index_select(x, 0, i), (Given((10, 4)), _IDS)),
    "gather": _moved(
        lambda x, i: torch.gather(x, 0, i.long()), (Given((10, 4)), Given((5, 4), ids=10))
    ),
    "scatter": _moved(
        lambda x, i, y: torch.scatter(x, 1, i.long(), y),
        (*_MATRIX, Given((6, 1), ids=10), Given((6, 1))),
    ),
    "pixel_shuffle": _moved(lambda x: functional.pixel_shuffle(x, 2), _IMAGE),
    "max_pool2d": _moved(lambda x: functional.max_pool2d(x, 3, 2, 1), _IMAGE),
    "upsample-nearest": _moved(lambda x: functional.interpolate(x, scale_factor=2.0), _IMAGE),
}

_NARROW = (Given((2, 4, 12)),)
_LAYERS: dict[str, Subject] = {
    "matmul": _summed(lambda: Function(torch.matmul), (Given((4, 12)), Given((12, 5))), "products"),
    "matmul-batched": _summed(
        lambda: Function(torch.matmul), (Given((2, 3, 4, 8)), Given((2, 3, 8, 5))), "products"
    ),
    "matmul-broadcast": _summed(
        lambda: Function(torch.matmul), (Given((2, 3, 4, 8)), Given((8, 5))), "products"
    ),
    "einsum": _summed(
        lambda: Function(lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y)),
        (Given((1, 2, 4, 8)), Given((1, 2, 5, 8))),
        "products",
    ),
    "linear": _layer(lambda: nn.Linear(12, 7), (Given((5, 12)),), "products"),
    "linear-no-bias": _layer(lambda: nn.Linear(12, 7, bias=False), (Given((5, 12)),), "products"),
    "conv1d": _layer(lambda: nn.Conv1d(4, 6, 3, padding=1), _NARROW, "convolutions"),
    "conv1d-dilated": _layer(
        lambda: nn.Conv1d(4, 4, 3, dilation=2, groups=4), _NARROW, "convolutions"
    ),
    "conv2d": _layer(lambda: nn.Conv2d(4, 6, 3, 2, 1), _IMAGE, "convolutions"),
    "conv2d-grouped": _layer(lambda: nn.Conv2d(4, 8, 3, groups=2), _IMAGE, "convolutions"),
    "conv2d-pointwise": _layer(lambda: nn.Conv2d(4, 6, 1), _IMAGE, "convolutions"),
    "conv3d": _layer(lambda: nn.Conv3d(2, 3, 2), (Given((1, 2, 4, 4, 4)),), "convolutions"),
    "conv-transpose2d": _layer(
        lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), _IMAGE, "convolutions"
    ),
    "avg_pool2d": _layer(lambda: nn.AvgPool2d(2), _IMAGE, "convolutions"),
    "avg_pool2d-padded": _layer(
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), _IMAGE, "convolutions"
    ),
    "adaptive-pool": _layer(lambda: nn.AdaptiveAvgPool2d(1), _IMAGE, "convolutions"),
    "upsample-bilinear": _layer(
        lambda: nn.Upsample(scale_factor=2.0, mode="bilinear"), _IMAGE, "convolutions"
    ),
    "layer_norm": _layer(lambda: nn.LayerNorm(10), _MATRIX, "norms"),
    "batch_norm": _layer(lambda: nn.BatchNorm2d(4), _IMAGE, "norms"),
    "group_norm": _layer(lambda: nn.GroupNorm(2, 4), _IMAGE, "norms"),
    "instance_norm": _layer(lambda: nn.InstanceNorm2d(4, affine=True), _IMAGE, "norms"),
}

OPERATIONS = _ELEMENT_WISE | _TWO | _REDUCED | _MOVED | _LAYERS
