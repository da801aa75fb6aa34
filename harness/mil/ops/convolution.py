"""Convolution in one to three spatial axes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operation("conv", inputs=("x", "weight", "bias"))
def conv(op: Operation) -> Run:
    """Convolve x [N, C, *D] with weight [O, C / groups, *K]; bias is [O].

    ``pad_type`` same puts the odd element of padding at the end, same_lower at the beginning.
    """
    rank = len(op.output.shape) - 2
    if rank not in _CONVOLUTIONS:
        raise op.error(f"{rank} spatial axes; 1 to 3 are known")
    strides = op.constant("strides") or [1] * rank
    dilations = op.constant("dilations") or [1] * rank
    pad_type, pad = op.constant("pad_type", "valid"), op.constant("pad") or [0] * (2 * rank)
    groups = op.constant("groups", 1)
    if pad_type not in ("valid", "custom", "same", "same_lower"):
        raise op.error(f"unknown pad_type '{pad_type}'")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sizes = {
            "valid": lambda: [0] * (2 * rank),
            "custom": lambda: pad,
            "same": lambda: _same(x, weight, strides, dilations, lower=False),
            "same_lower": lambda: _same(x, weight, strides, dilations, lower=True),
        }[pad_type]()
        flat = [n for axis in reversed(range(rank)) for n in sizes[2 * axis : 2 * axis + 2]]
        padded = functional.pad(x, flat)
        return _CONVOLUTIONS[rank](
            padded, weight, bias, stride=strides, dilation=dilations, groups=groups
        )

    return run


def _same(
    x: Tensor, weight: Tensor, strides: list[int], dilations: list[int], lower: bool
) -> list[int]:
    """Padding that gives ceil(size / stride) results per axis: begin and end of each."""
    sizes = []
    for size, kernel, stride, dilation in zip(
        x.shape[2:], weight.shape[2:], strides, dilations, strict=True
    ):
        reach = dilation * (kernel - 1) + 1
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        small, large = total // 2, total - total // 2
        sizes += [large, small] if lower else [small, large]
    return sizes
