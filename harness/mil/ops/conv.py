"""Convolution and its transpose, over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operation("conv", inputs=("x", "weight", "bias"))
def conv(op: Operation) -> Run:
    """Convolve x [N, C, *D] with weight [O, C / groups, *K]; bias is [O].

    If the padding is odd, `pad_type` same puts the extra element at the end, same_lower at the
    beginning.
    """
    strides, dilations, pad = op.constant("strides"), op.constant("dilations"), op.constant("pad")
    groups, pad_type = op.constant("groups", 1), pad_type_of(op)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = _rank(op, x)
        steps, spread = strides or [1] * rank, dilations or [1] * rank
        kernel = [gap * (size - 1) + 1 for gap, size in zip(spread, weight.shape[2:], strict=True)]
        sizes = padding(pad_type, pad, x.shape[2:], kernel, steps)
        op.check_room(padded_shape(x, sizes), "the padded input")
        padded = functional.pad(x, flat(sizes))
        return _CONVOLUTIONS[rank](
            padded, weight, bias, stride=steps, dilation=spread, groups=groups
        )

    return run


@operation("conv_transpose", inputs=("x", "weight", "bias"))
def conv_transpose(op: Operation) -> Run:
    """Apply the transpose of `conv` to x [N, C, *D] with weight [C, O / groups, *K]; bias is [O].

    The padding is cut off the full result. Several result sizes convolve to the size of `x`;
    `output_shape` chooses one of them. Elements beyond the full result are the bias.
    """
    strides, dilations, pad = op.constant("strides"), op.constant("dilations"), op.constant("pad")
    groups, pad_type = op.constant("groups", 1), pad_type_of(op)
    shape = op.constant("output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = _rank(op, x)
        steps, spread = strides or [1] * rank, dilations or [1] * rank
        reach = [gap * (size - 1) + 1 for gap, size in zip(spread, weight.shape[2:], strict=True)]
        ends = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], steps, reach, strict=True)]
        op.check_room((len(x), weight.shape[1] * groups, *ends), "the full result")
        full = _TRANSPOSED[rank](x, weight, stride=steps, dilation=spread, groups=groups)
        wanted = [int(size) for size in shape[2:]] if shape is not None else None
        if wanted is None and pad_type.startswith("same"):
            wanted = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
        cut = _cut(pad_type, pad or [0] * (2 * rank), list(full.shape[2:]), wanted)
        op.checked_shape(
            (*full.shape[:2], *(s + sum(c) for s, c in zip(full.shape[2:], cut, strict=True))),
            "padding and output_shape",
        )
        full = functional.pad(full, flat([size for pair in cut for size in pair]))
        return full if bias is None else full + bias.reshape(1, -1, *[1] * rank)

    return run


def _cut(
    pad_type: str, pad: list[int], full: list[int], wanted: list[int] | None
) -> list[tuple[int, int]]:
    """Return the sizes to add to a full result at both ends of each axis; negative ones cut."""
    pairs = []
    for axis, size in enumerate(full):
        begin, end = pad[2 * axis : 2 * axis + 2] if pad_type == "custom" else (0, 0)
        if wanted is not None:
            if pad_type.startswith("same"):
                begin = _half(max(0, size - wanted[axis]), pad_type)
            end = size - begin - wanted[axis]
        pairs.append((-begin, -end))
    return pairs


def pad_type_of(op: Operation) -> str:
    """Return the kind of padding; raises ArtifactError for an unknown one."""
    pad_type = str(op.constant("pad_type", "valid")).lower()
    if pad_type not in ("valid", "custom", "same", "same_lower"):
        raise op.error(f"unknown pad_type '{pad_type}'")
    return pad_type


def padding(
    pad_type: str, pad: list[int] | None, sizes: Sequence[int], kernel: list[int], steps: list[int]
) -> list[int]:
    """Return the padding before and after each spatial axis; same makes ceil(size / step) results.

    `kernel` is the extent of the kernel with its dilation.
    """
    if pad_type == "custom" and pad is not None:
        return pad
    if not pad_type.startswith("same"):
        return [0] * (2 * len(kernel))
    pairs = []
    for size, reach, step in zip(sizes, kernel, steps, strict=True):
        total = max(0, (-(-size // step) - 1) * step + reach - size)
        begin = _half(total, pad_type)
        pairs += [begin, total - begin]
    return pairs


def padded_shape(x: Tensor, pairs: Sequence[int]) -> list[int]:
    """Return the shape of x [N, C, *D] with padding before and after each spatial axis."""
    added = [pairs[place] + pairs[place + 1] for place in range(0, len(pairs) - 1, 2)]
    return [*x.shape[:2], *(n + more for n, more in zip(x.shape[2:], added, strict=True))]


def flat(pairs: list[int]) -> list[int]:
    """Return sizes in the order of torch's `pad`, which begins with the last axis."""
    return [n for axis in reversed(range(len(pairs) // 2)) for n in pairs[2 * axis : 2 * axis + 2]]


def _half(total: int, pad_type: str) -> int:
    return total - total // 2 if pad_type == "same_lower" else total // 2


def _rank(op: Operation, x: Tensor) -> int:
    if x.dim() - 2 not in _CONVOLUTIONS:
        raise op.error(f"{x.dim() - 2} spatial axes; 1 to 3 are known")
    return x.dim() - 2
