"""The weights of an artifact beside the parameters of an eager module, found by their values.

Names do not survive an export. A plain weight is the parameter that has most of its values; a
quantized one is the parameter that it is nearest to. A weight that resembles no parameter is one
that a pass computed from several, unless it has taken the place of a parameter that is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.artifact import Artifact, Package
from harness.artifact.proto import mil_types
from harness.artifact.pte import TensorValue
from harness.mil import get_policy, load_function
from harness.mil.values import read_constant

Key = tuple[str, str]
"""A method, and a parameter's name in its module."""
Parameters = dict[Key, torch.Tensor]

ALIKE = 0.5  # a weight with this part of its values in a parameter is that parameter, changed
_NEAR = 0.1  # of a parameter's power, which the error of quantizing it does not reach
_HALF_STEP = 0.51  # a rounded value is half a step off at most
# Of a value: it, its scale, their quotient, and the product that an artifact computes again are
# each rounded to fp16.
_ROUNDING = 4 * 2.0**-11
_SCALE_ERROR = 0.005  # by which a block's scale may leave the rule that nearly all follow
_NEARLY_ALL = 0.9
_FEW = 2  # values in a mask, or in a bias of zeros: neither is told from another
_SOME = 4096


def held_weights(artifact: Artifact) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield the weights of an artifact's packages: where, values as fp32, whether they are fp16.

    Constants of one element and quantized weights are left out. The weights of an LSTM have their
    gates in PyTorch's order.
    """
    for number, package in enumerate(artifact.packages):
        for name in sorted(package.functions):
            function = load_function(package, name, get_policy("widen"), stateful=True)
            operations = package.operations(name).operations
            gated = _gated(operations)
            for operation in operations:
                if operation.type != "const":
                    continue
                output = operation.outputs[0]
                value = function.constant(output.name)
                if value is None or not value.is_floating_point() or value.numel() < 2:
                    continue
                if output.name in gated and len(value) % 4 == 0:
                    i, f, o, g = value.chunk(4)
                    value = torch.cat([i, f, g, o])
                kind = mil_types().get(output.type.tensorType.dataType)
                is_half = kind is not None and kind.name == "FLOAT16"
                yield f"package {number}, function '{name}', '{output.name}'", value, is_half


def _gated(operations: Sequence[Any]) -> set[str]:
    """Return the names of the constants that hold the gates of an LSTM, one after the other."""
    return {
        argument.name
        for operation in operations
        if operation.type == "lstm"
        for name, value in operation.inputs.items()
        if name.startswith(("weight", "bias"))
        for argument in value.arguments
    }


def every_weight(artifact: Artifact) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the float weights of an artifact, plain, then quantized, then those of kernels."""
    for where, weight, _ in held_weights(artifact):
        yield where, weight
    for where, weight, _ in _all_quantized(artifact, {}):
        yield where, weight
    for method in artifact.methods if artifact.pte is not None else ():
        for number, weight in enumerate(undelegated(artifact, method)):
            yield f"method '{method}', constant {number}", weight


def most_alike(
    weight: torch.Tensor, parameters: Parameters, is_half: bool
) -> tuple[Key, torch.Tensor, torch.Tensor] | None:
    """Return the parameter most like a weight: its name, its values in the weight's shape, and
    where they are equal; None when none is alike. Zeros say nothing.
    """
    best, most = None, ALIKE
    for name, parameter in parameters.items():
        if parameter.numel() != weight.numel():
            continue
        for layout in layouts(parameter):
            want = layout.reshape(weight.shape)
            want = want.half().float() if is_half else want
            equal, counts = weight == want, (want != 0) | (weight != 0)
            share = float((equal & counts).sum()) / max(1, int(counts.sum()))
            if share > most:
                best, most = (name, want, equal), share
    return best


@dataclass(frozen=True)
class Match:
    """A weight of the artifact, of `count` values, and the parameter that it is.

    A weight that resembles no parameter has None, and only then its values are kept. `difference`
    is how the values differ, or "".
    """

    where: str
    count: int
    parameter: Key | None = None
    difference: str = ""
    weight: torch.Tensor | None = None


def matches(artifact: Artifact, parameters: Parameters) -> Iterator[Match]:
    """Yield each weight of the artifact with its parameter, plain weights first."""
    for where, weight, is_half in held_weights(artifact):
        best = most_alike(weight, parameters, is_half)
        if best is None:
            yield Match(where, weight.numel(), weight=weight)
            continue
        key, want, equal = best
        wrong, error = int((~equal).sum()), float((weight - want).abs().max())
        count = f"{wrong:,} of {equal.numel():,}"
        differs = f"{count} values of '{key[1]}' differ, by up to {error:.3g}"
        yield Match(where, weight.numel(), key, differs if wrong else "")
    for where, weight, quantized in _all_quantized(artifact, parameters):
        if quantized is None:
            yield Match(where, weight.numel(), weight=weight)
        else:
            yield Match(where, weight.numel(), quantized.parameter, quantized.difference)


def distinct(parameters: Parameters) -> dict[Key, bytes]:
    """Return a digest of each parameter that has more than a few values; names may share one."""
    return {
        key: hashlib.sha256(repr(t.shape).encode() + t.contiguous().numpy().tobytes()).digest()
        for key, t in parameters.items()
        if has_values(t)
    }


def has_values(weight: torch.Tensor) -> bool:
    """Return whether a weight has more values than a mask, or than a bias of zeros."""
    some = weight.flatten()[:_SOME]  # enough, nearly always: to sort a large weight takes long
    return bool(some.unique().numel() > _FEW or weight.unique().numel() > _FEW)


def functions_within(artifact: Artifact, method: str) -> tuple[str, ...]:
    """Return how the places of a method's weights begin."""
    if artifact.package is not None:
        return (f"package 0, function '{method}', ",)
    packages = artifact.packages
    return tuple(
        f"package {packages.index(d.bundle.package)}, function '{d.program_function}', "
        for d in artifact.delegates[method]
    )


def undelegated(artifact: Artifact, method: str) -> Iterator[torch.Tensor]:
    """Yield the float constants of a program's own kernels."""
    for value in artifact.pte.methods[method].values if artifact.pte is not None else ():
        if not isinstance(value, TensorValue) or value.data is None:
            continue
        if value.dtype in ("float16", "float32"):
            yield torch.from_numpy(value.array().copy()).float()


def layouts(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return a parameter and, of a matrix, its transpose."""
    return [parameter, parameter.T] if parameter.dim() == 2 else [parameter]


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight, dequantized to fp32, and the parameter that it was made from.

    `scale` has the weight's shape, None where values come from a table. `readers` are the types of
    the operations that read the weight.
    """

    where: str
    weight: torch.Tensor
    scale: torch.Tensor | None
    parameter: Key
    original: torch.Tensor  # in the weight's shape
    as_parameter: torch.Tensor  # the weight in the parameter's shape
    readers: frozenset[str]

    @property
    def difference(self) -> str:
        """How the weight differs from the parameter beyond quantization, or ""."""
        if self.scale is None:
            return ""
        name = self.parameter[1]
        steps = (self.weight - self.original).abs() / self.scale
        allowed = _HALF_STEP + _ROUNDING * (self.original / self.scale).abs()
        wrong = int((steps > allowed).sum())
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
    return [match for _, _, match in _all_quantized(artifact, parameters) if match is not None]


def adopted(artifact: Artifact, parameters: Parameters) -> Parameters:
    """Return the values of quantized weights by the parameters of each method that they are.

    Of two equal parameters, as of a tied layer, an embedding is the first.
    """
    found: Parameters = {}
    for match in quantized_weights(artifact, parameters):
        original = parameters[match.parameter]
        for method in artifact.methods:
            if not match.where.startswith(functions_within(artifact, method)):
                continue
            equal = [
                key
                for key, tensor in parameters.items()
                if key[0] == method and tensor.shape == original.shape
                if torch.equal(tensor, original)
            ]
            if equal and "gather" in match.readers:
                found[equal[0]] = match.as_parameter
            if equal and match.readers != {"gather"}:
                found[equal[-1]] = match.as_parameter
    return found


def _readers(maker: Any, operations: Sequence[Any]) -> frozenset[str]:
    names = {output.name for output in maker.outputs}
    return frozenset(
        operation.type
        for operation in operations
        for value in operation.inputs.values()
        if names.intersection(argument.name for argument in value.arguments)
    )


Quantized = tuple[str, torch.Tensor, QuantizedWeight | None]


def _all_quantized(artifact: Artifact, parameters: Parameters) -> Iterator[Quantized]:
    for number, package in enumerate(artifact.packages):
        for name in sorted(package.functions):
            where = f"package {number}, function '{name}'"
            yield from _quantized(package, name, where, parameters)


def _quantized(
    package: Package, name: str, where: str, parameters: Parameters
) -> Iterator[Quantized]:
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
        if best is None:
            yield place, weight, None
        else:
            key, original, turned = best
            shape = parameters[key].shape
            back = weight.reshape(shape[::-1]).T if turned else weight.reshape(shape)
            scale = _scale(operation, package, weight, place)
            match = QuantizedWeight(
                place,
                weight,
                scale,
                key,
                original,
                back.contiguous(),
                _readers(operation, operations),
            )
            yield place, weight, match


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
