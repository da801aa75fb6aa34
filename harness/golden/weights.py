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

_ALIKE = 0.5  # a weight with this part of its values in a parameter is that parameter, changed
_NEAR = 0.1  # of a parameter's power, which the error of quantizing it does not reach
_HALF_STEP = 0.51  # a rounded value is half a step off at most
_ROUNDING = 2.0**-10  # of a value: it and its scale are rounded to fp16 before they are divided
_SCALE_ERROR = 0.005  # by which a block's scale may leave the rule that nearly all follow
_NEARLY_ALL = 0.9
_FEW = 2  # values in a mask, or in a bias of zeros: neither is told from another
_SOME = 4096
_CORRELATED = 0.5  # a weight that a pass has added to a parameter, as of a LoRA
_SAME_LINE = 0.9  # a row that a pass has scaled and shifted, as of a batch norm
_SHORT = 3  # values in a row; any two shorter rows are in line


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


def every_weight(artifact: Artifact) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the float weights of an artifact, plain, then quantized, then those of kernels."""
    for where, weight, _ in held_weights(artifact):
        yield where, weight
    for where, weight, _ in _all_quantized(artifact, {}):
        yield where, weight
    for method in artifact.methods if artifact.pte is not None else ():
        for number, weight in enumerate(_undelegated(artifact, method)):
            yield f"method '{method}', constant {number}", weight


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
        for layout in _layouts(parameter):
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
        differs = f"{wrong} of {equal.numel()} values of '{key[1]}' differ, by up to {error:.3g}"
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


def replaced(
    artifact: Artifact, found: Sequence[Match], parameters: Parameters, buffers: set[Key]
) -> Iterator[tuple[Match, list[str]]]:
    """Yield the weights that have taken the place of parameters, and the names of these.

    A method lacks these parameters, and has at least as many weights of their size that cannot be
    made of a parameter. With fewer weights, a pass may have folded several parameters into one, as
    it does with a bias and a batch norm's statistics.
    """
    digests = distinct(parameters)
    for method in artifact.methods:
        functions = _functions(artifact, method)
        own = [match for match in found if match.where.startswith(functions)]
        of_method = {key: t for key, t in parameters.items() if key[0] == method}
        known = {digests.get(match.parameter) for match in own if match.parameter}
        for constant in _undelegated(artifact, method):
            best = most_alike(constant, of_method, is_half=False)
            known |= {digests.get(best[0])} if best else set()
        missing = {digests[k]: k for k in of_method if digests.get(k, None) not in known | {None}}
        for size in sorted({parameters[key].numel() for key in missing.values()}):
            lost = [key for key in missing.values() if parameters[key].numel() == size]
            unknown = [
                (match, match.weight)
                for match in own
                if match.weight is not None and match.count == size and has_values(match.weight)
            ]
            related = {
                (match.where, key)
                for match, weight in unknown
                for key, parameter in of_method.items()
                if (key in lost or parameter.numel() > size) and _made_of(weight, parameter)
            }
            strange = [m for m, _ in unknown if m.where not in {where for where, _ in related}]
            lost = [key for key in lost if key not in {key for _, key in related}]
            if len(lost) <= len(strange) and lost and not buffers.intersection(lost):
                for match in strange:
                    yield match, [name for _, name in lost]


def _functions(artifact: Artifact, method: str) -> tuple[str, ...]:
    if artifact.package is not None:
        return (f"package 0, function '{method}', ",)
    packages = artifact.packages
    return tuple(
        f"package {packages.index(d.bundle.package)}, function '{d.program_function}', "
        for d in artifact.delegates[method]
    )


def _undelegated(artifact: Artifact, method: str) -> Iterator[torch.Tensor]:
    """Yield the float constants of a program's own kernels."""
    for value in artifact.pte.methods[method].values if artifact.pte is not None else ():
        if not isinstance(value, TensorValue) or value.data is None:
            continue
        if value.dtype in ("float16", "float32"):
            yield torch.from_numpy(value.array().copy()).float()


def _made_of(weight: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Return whether a pass may have made a weight of a parameter and others.

    It takes a part, changes the order of the values, scales and shifts all values or those of each
    row or column, or adds to the values.
    """
    if parameter.numel() > weight.numel():
        flat = weight.half().flatten()
        if parameter.numel() % len(flat):
            return False
        parts = [t.half().reshape(-1, len(flat)) for t in _layouts(parameter)]
        return any(float((part == flat).float().mean(1).max()) > _ALIKE for part in parts)
    if torch.equal(weight.half().flatten().sort()[0], parameter.half().flatten().sort()[0]):
        return True
    for layout in _layouts(parameter):
        want = layout.reshape(weight.shape)
        if _in_line(weight.reshape(1, -1), want.reshape(1, -1)) > _CORRELATED:
            return True
        for axis in range(min(2, weight.dim()) if weight.dim() > 1 else 0):
            rows = [t.transpose(0, axis).flatten(1) for t in (weight, want)]
            if rows[0].shape[1] >= _SHORT and _in_line(*rows) > _SAME_LINE:
                return True
    return False


def _in_line(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean magnitude of the correlation of two tensors' rows."""
    one, other = (t.double() - t.double().mean(1, keepdim=True) for t in (one, other))
    return float(torch.cosine_similarity(one, other, dim=1).abs().mean())


def _layouts(parameter: torch.Tensor) -> list[torch.Tensor]:
    return [parameter, parameter.T] if parameter.dim() == 2 else [parameter]


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
            match = QuantizedWeight(place, weight, scale, key, original, back.contiguous())
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
