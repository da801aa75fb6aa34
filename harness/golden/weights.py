"""The weights of an artifact beside the parameters of an eager module, found by their values.

Names do not survive an export. A plain weight is the parameter that has most of its values; a
quantized one is the parameter that it is nearest to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from harness.artifact import Artifact, Package
from harness.artifact.proto import mil_types
from harness.mil import get_policy, load_function
from harness.mil.values import read_constant

Key = tuple[str, str]
"""A method, and a parameter's name in its module."""
Parameters = dict[Key, torch.Tensor]

_ALIKE = 0.5  # a weight with this part of its values in a parameter is that parameter, changed
_NEAR = 0.1  # of a parameter's power, which the error of quantizing it does not reach
_HALF_STEP = 0.52  # a rounded value is half a step off at most; the scale is rounded to fp16, too
_SCALE_ERROR = 0.005  # by which a block's scale may leave the rule that nearly all follow
_NEARLY_ALL = 0.9


def held_weights(artifact: Artifact) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield the weights of an artifact's packages: where, values as fp32, whether they are fp16.

    Constants of one element and quantized weights are left out.
    """
    for number, package in enumerate(artifact.packages):
        for name in sorted(package.functions):
            function = load_function(package, name, get_policy("widen"), stateful=True)
            for operation in package.operations(name).operations:
                if operation.type != "const":
                    continue
                output = operation.outputs[0]
                value = function.constant(output.name)
                if value is None or not value.is_floating_point() or value.numel() < 2:
                    continue
                kind = mil_types().get(output.type.tensorType.dataType)
                is_half = kind is not None and kind.name == "FLOAT16"
                yield f"package {number}, function '{name}', '{output.name}'", value, is_half


def most_alike(
    weight: torch.Tensor, parameters: Parameters, is_half: bool
) -> tuple[Key, torch.Tensor, torch.Tensor] | None:
    """Return the parameter most like a weight: its name, its values in the weight's shape, and
    where they are equal; None when none is alike. Zeros say nothing.
    """
    best, most = None, _ALIKE
    for name, parameter in parameters.items():
        if parameter.numel() != weight.numel():
            continue
        for form in [parameter] + ([parameter.T] if parameter.dim() == 2 else []):
            want = form.reshape(weight.shape)
            want = want.half().float() if is_half else want
            equal, counts = weight == want, (want != 0) | (weight != 0)
            share = float((equal & counts).sum()) / max(1, int(counts.sum()))
            if share > most:
                best, most = (name, want, equal), share
    return best


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight, dequantized to fp32, and the parameter that it was made from.

    `scale` has the weight's shape, None where values come from a table.
    """

    where: str
    weight: torch.Tensor
    scale: torch.Tensor | None
    parameter: Key
    original: torch.Tensor  # in the weight's shape
    as_parameter: torch.Tensor  # the weight in the parameter's shape

    @property
    def difference(self) -> str:
        """How the weight differs from the parameter beyond quantization, or ""."""
        if self.scale is None:
            return ""
        name = self.parameter[1]
        steps = (self.weight - self.original).abs() / self.scale
        wrong = int((steps > _HALF_STEP).sum())
        if wrong:
            worst = float(steps.max())
            return (
                f"{wrong} values are over half a step from those of '{name}', by up to {worst:.3g}"
            )
        sizes = (self.original.abs() / self.scale).flatten(1).amax(1) if self.scale.dim() else steps
        deviation = (sizes / sizes.median() - 1).abs()
        in_line = float((deviation < _SCALE_ERROR).float().mean())
        if _NEARLY_ALL <= in_line < 1:
            worst = float(deviation.max())
            return f"a scale is off by {worst:.2g} from what the others of '{name}' follow"
        return ""


def quantized_weights(artifact: Artifact, parameters: Parameters) -> list[QuantizedWeight]:
    """Return the quantized weights that are near a parameter."""
    return [
        match
        for number, package in enumerate(artifact.packages)
        for name in sorted(package.functions)
        for match in _quantized(package, name, f"package {number}, function '{name}'", parameters)
    ]


def _quantized(
    package: Package, name: str, where: str, parameters: Parameters
) -> Iterator[QuantizedWeight]:
    operations = package.operations(name).operations
    if not any(operation.type.startswith("constexpr_") for operation in operations):
        return
    function = load_function(package, name, get_policy("widen"), stateful=True)
    for operation in operations:
        if not operation.type.startswith("constexpr_"):
            continue
        weight = function.constant(operation.outputs[0].name)
        if weight is None or not weight.is_floating_point():
            continue
        place = f"{where}, '{operation.outputs[0].name}'"
        best, least = None, _NEAR
        for key, parameter in parameters.items():
            if parameter.numel() != weight.numel():
                continue
            for turned in (False, True) if parameter.dim() == 2 else (False,):
                original = (parameter.T if turned else parameter).reshape(weight.shape)
                power = float(original.square().sum())
                error = float((weight - original).square().sum()) / (power or 1.0)
                if error < least:
                    best, least = (key, original, turned), error
        if best is not None:
            key, original, turned = best
            shape = parameters[key].shape
            back = weight.reshape(shape[::-1]).T if turned else weight.reshape(shape)
            scale = _scale(operation, package, weight, place)
            yield QuantizedWeight(place, weight, scale, key, original, back.contiguous())


def _scale(
    operation: Any, package: Package, weight: torch.Tensor, where: str
) -> torch.Tensor | None:
    """Return the step between two values of each element, None where a table holds the values."""
    given = operation.inputs.get("scale")
    if operation.type != "constexpr_blockwise_shift_scale" or given is None:
        return None
    scale = read_constant(given.arguments[0].value, package, where).tensor().float()
    for axis, (size, blocks) in enumerate(zip(weight.shape, scale.shape, strict=True)):
        scale = scale.repeat_interleave(size // blocks, axis)
    return scale.abs()
