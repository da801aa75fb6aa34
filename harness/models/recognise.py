"""Reads a model's sizes and dequantized weights out of an artifact, by the program's structure.

Quantized weights have no names in an ML Program, so this module recognises them by structure:
linear operations that read the same value are one group. Each architecture has its own order of
groups and norms, such as queries, keys and values; attention output; gate and up; down; ...;
logits. A linear layer that was split by rows is joined again, in program order. A norm is
recognised by its root, because coremltools removes the product with a weight of ones: ExecuTorch's
own RMSNorm multiplies by `rsqrt`, `torch.nn.RMSNorm` becomes a division by `sqrt`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from harness.artifact import Artifact
from harness.artifact.files import release
from harness.artifact.pte import DelegateCall
from harness.errors import ArtifactError
from harness.mil.function import Function, load_function
from harness.mil.packed import PackedWeight
from harness.mil.types import get_policy
from harness.models import Architecture, ModelConfig, Weights
from harness.models.config import ARCHITECTURES

_Stored = torch.Tensor | PackedWeight
_Maker = Callable[[], torch.Tensor]


@dataclass
class _Parts:
    """The parts of a model that a method's programs contain, in order of execution.

    A norm without a weight is None.
    """

    embeddings: list[_Stored] = field(default_factory=list)
    norms: list[torch.Tensor | None] = field(default_factory=list)
    epsilons: list[float] = field(default_factory=list)
    groups: list[list[_Stored]] = field(default_factory=list)


@dataclass(frozen=True)
class StoredRows:
    """Makes a weight of rows that an artifact stores: of each tensor, from one row to another."""

    parts: tuple[tuple[_Stored, int, int], ...]

    def __call__(self) -> torch.Tensor:
        """Return the rows, dequantized to fp32."""
        found = [_tensor(stored)[first:end] for stored, first, end in self.parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def __eq__(self, other: object) -> bool:
        """Return whether both read the same rows, so that the weights are equal."""
        return isinstance(other, StoredRows) and self._source == other._source

    def __hash__(self) -> int:
        return hash(self._source)

    @property
    def _source(self) -> tuple[tuple[int, int, int], ...]:
        return tuple((id(stored), first, end) for stored, first, end in self.parts)


def _tensor(stored: _Stored) -> torch.Tensor:
    return stored.dequantized() if isinstance(stored, PackedWeight) else stored


def read_model(artifact: Artifact, method: str) -> tuple[ModelConfig, Weights]:
    """Return the sizes of the model that a method computes, and its weights by Meta's names.

    A weight is dequantized to fp32 when it is read. The config's RoPE parameters are not the
    model's: RoPE tables are inputs of the method. Raises ArtifactError, which lists the parts that
    were found, when they do not make a model of a known architecture.
    """
    parts = _Parts()
    for function, block in _functions(artifact, method):
        _collect(function, block, parts)
    where = f"{artifact.path}, method '{method}'"
    architecture = _architecture(parts, where)
    config = _config(artifact, parts, architecture, where)
    size = sum(map(math.prod, config.weight_shapes.values()))
    return config, Weights(_named(config, parts, where), size, partial(_release, artifact))


def _release(artifact: Artifact) -> None:
    for package in artifact.packages:
        for data in package.files.values():
            release(data)


def _architecture(parts: _Parts, where: str) -> Architecture:
    """Return the architecture with as many groups and norms per layer as the program has."""
    for row in ARCHITECTURES:
        n_layers, odd = divmod(len(parts.groups) - 1, len(row.groups))
        complete = len(parts.norms) == len(row.norms) * n_layers + 1 and parts.embeddings
        if not odd and n_layers > 0 and complete:
            return row
    groups = _either(len(row.groups) for row in reversed(ARCHITECTURES))
    norms = _either(len(row.norms) for row in reversed(ARCHITECTURES))
    raise ArtifactError(
        f"{where}: {_UNKNOWN}: {len(parts.embeddings)} embeddings, "
        f"{len(parts.groups)} groups of linears ({groups} per layer and 1 are expected), "
        f"{len(parts.norms)} norms ({norms} per layer and 1 are expected)"
    )


def _either(words: Iterable[object]) -> str:
    return " or ".join(map(str, dict.fromkeys(words)))


_UNKNOWN = f"not recognised as a {_either(row.name for row in reversed(ARCHITECTURES))}"


def _functions(artifact: Artifact, method: str) -> Iterator[tuple[Function, Any]]:
    """Yield the functions of a method's Core ML delegates, in call order, with their blocks."""
    if artifact.pte is None or method not in artifact.methods:
        raise ArtifactError(f"{artifact.path}: no program method '{method}' to read weights from")
    delegates = {delegate.index: delegate for delegate in artifact.delegates[method]}
    for call in artifact.pte.methods[method].instructions:
        if isinstance(call, DelegateCall) and call.delegate in delegates:
            delegate = delegates[call.delegate]
            package, name = delegate.bundle.package, delegate.program_function
            yield load_function(package, name, get_policy("widen")), package.operations(name)


def _collect(function: Function, block: Any, parts: _Parts) -> None:
    last_source = None
    scalars: dict[str, float] = {}  # the result of adding, or dividing, a scalar constant -> it
    roots: set[str] = set()  # the results of rsqrt
    divisors: set[str] = set()  # the results of sqrt, and products with them
    normed: dict[str, int] = {}  # a product with a root, a quotient by a divisor -> its norm
    for operation in block.operations:
        names = {
            key: argument.arguments[0].name
            for key, argument in operation.inputs.items()
            if argument.arguments
        }
        constants = {key: function.stored(name) for key, name in names.items() if name}
        match operation.type:
            case "linear":
                weight = constants["weight"]
                if weight is None:
                    continue
                if names["x"] != last_source:
                    parts.groups.append([])
                last_source = names["x"]
                parts.groups[-1].append(weight)
            case "gather" if (table := constants["x"]) is not None and len(table.shape) == 2:
                parts.embeddings.append(table)
            case "add" | "mul":
                if operation.type == "mul" and roots & {names["x"], names["y"]}:
                    normed[operation.outputs[0].name] = len(parts.norms)
                    parts.norms.append(None)
                elif operation.type == "mul" and divisors & {names["x"], names["y"]}:
                    divisors.add(operation.outputs[0].name)
                for constant in (constants.get("x"), constants.get("y")):
                    if not isinstance(constant, torch.Tensor) or not constant.is_floating_point():
                        continue
                    if constant.dim() == 1 and operation.type == "mul":
                        number = normed.get(names["x"], normed.get(names["y"]))
                        _add_norm(parts.norms, number, constant)
                    elif constant.dim() == 0 and operation.type == "add":
                        scalars[operation.outputs[0].name] = float(constant)
                if operation.type == "add" and names["y"] in scalars:  # an epsilon, rescaled
                    scalars[operation.outputs[0].name] = scalars[names["y"]]
            case "real_div" if names["y"] in divisors:
                normed[operation.outputs[0].name] = len(parts.norms)
                parts.norms.append(None)
            case "real_div":
                constant = constants["x"]
                if isinstance(constant, torch.Tensor) and constant.dim() == 0:
                    scalars[operation.outputs[0].name] = float(constant)
                elif names["x"] in scalars:
                    scalars[operation.outputs[0].name] = scalars[names["x"]]
            case "rsqrt" if names["x"] in scalars:
                parts.epsilons.append(scalars[names["x"]])
                roots.add(operation.outputs[0].name)
            case "sqrt" if names["x"] in scalars:
                parts.epsilons.append(scalars[names["x"]])
                divisors.add(operation.outputs[0].name)
            case "cast" if names["x"] in normed:
                normed[operation.outputs[0].name] = normed[names["x"]]
            case "cast" if names["x"] in roots:
                roots.add(operation.outputs[0].name)


def _add_norm(norms: list[torch.Tensor | None], number: int | None, weight: torch.Tensor) -> None:
    """Give norm `number` its weight; a second weight, or one without a norm, is appended."""
    if number is None or norms[number] is not None:
        norms.append(weight)
    else:
        norms[number] = weight


def _config(
    artifact: Artifact, parts: _Parts, architecture: Architecture, where: str
) -> ModelConfig:
    try:
        head_dim = int(artifact.constants["head_dim"])
        n_kv_heads = int(artifact.constants["n_heads_per_cache"])
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{where}: constant methods 'head_dim' and 'n_heads_per_cache' are needed"
        ) from None
    vocab_size, dim = parts.embeddings[0].shape
    rows = sum(weight.shape[0] for weight in parts.groups[0])
    n_heads = rows // head_dim - 2 * n_kv_heads if head_dim > 0 else 0
    if min(n_heads, n_kv_heads) < 1 or n_heads % n_kv_heads:
        raise ArtifactError(
            f"{where}: {_UNKNOWN}: {rows} rows of queries, keys and values do not "
            f"divide into heads of {head_dim} rows with {n_kv_heads} key-value heads"
        )
    if len(set(parts.epsilons)) != 1:
        raise ArtifactError(f"{where}: its norms have {len(set(parts.epsilons))} epsilons, not one")
    return ModelConfig(
        architecture=architecture,
        dim=dim,
        n_layers=len(parts.groups) // len(architecture.groups),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_dim=sum(weight.shape[0] for weight in parts.groups[2]) // 2,
        vocab_size=vocab_size,
        norm_eps=parts.epsilons[0],
        attention_scale=_rounded(artifact, head_dim**-0.5),
    )


def _rounded(artifact: Artifact, value: float) -> float:
    """Return a number rounded to the artifact's own dtype, which its RoPE tables have.

    It is not read from the program: a check compares it with the program's own constant.
    """
    dtype = str(getattr(artifact.constants.get("freqs_cos"), "dtype", "float32"))
    kept = torch.float16 if dtype == "float16" else torch.float32
    return float(torch.tensor(value, dtype=kept))


def _named(config: ModelConfig, parts: _Parts, where: str) -> dict[str, _Maker]:
    shapes = config.weight_shapes
    names_of_norms = [
        f"layers.{layer}.{norm.name}.weight"
        for layer in range(config.n_layers)
        for norm in config.architecture.norms
    ]
    table = parts.embeddings[0]
    weights: dict[str, _Maker] = {
        "tok_embeddings.weight": StoredRows(((table, 0, table.shape[0]),))
    }
    for name, norm in zip([*names_of_norms, "norm.weight"], parts.norms, strict=True):
        ones = partial(torch.ones, shapes[name])
        weights[name] = ones if norm is None else StoredRows(((norm, 0, len(norm)),))
    groups = iter(parts.groups)
    for prefix in (f"layers.{layer}." for layer in range(config.n_layers)):
        for names in config.architecture.groups:
            full = [f"{prefix}{name}.weight" for name in names]
            weights |= _cut(next(groups), full, config, where)
    return weights | _cut(parts.groups[-1], ["output.weight"], config, where)


def _cut(
    group: Sequence[_Stored], names: list[str], config: ModelConfig, where: str
) -> dict[str, StoredRows]:
    """Cut the rows of a group among its layers, by the sizes that the config implies."""
    shapes = [config.linears[name] for name in names]
    sizes, width = [rows for rows, _ in shapes], shapes[0][1]
    found = [list(weight.shape) for weight in group]
    if any(shape[1:] != [width] for shape in found) or sum(rows for rows, _ in found) != sum(sizes):
        raise ArtifactError(
            f"{where}: {_UNKNOWN}: {', '.join(names)} are made of {found}, {shapes} are expected"
        )
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return {
        name: StoredRows(tuple(_between(group, end - size, end)))
        for name, size, end in zip(names, sizes, ends, strict=True)
    }


def _between(group: Sequence[_Stored], start: int, end: int) -> Iterator[tuple[_Stored, int, int]]:
    """Yield the parts of the tensors of a group whose joined rows are from `start` to `end`."""
    before = 0
    for stored in group:
        first, last = max(0, start - before), min(stored.shape[0], end - before)
        if first < last:
            yield stored, first, last
        before += stored.shape[0]
