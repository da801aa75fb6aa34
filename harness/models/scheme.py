"""How an artifact's weights are quantized, read from its programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.artifact import Artifact, ArtifactError
from harness.artifact.dtypes import MIL_TYPES
from harness.export.options import ExportOptions

_BITS = {"INT8": 8, "INT4": 4}
_LINEAR_SCHEMES = {None: "none", (4, 0): "c4w", (4, 32): "b4w"}
_Scheme = tuple[int, int] | None  # bits, and columns that share a scale (0: a whole row)


def read_scheme(artifact: Artifact, dtype: str) -> ExportOptions:
    """Return options that quantize a checkpoint as the artifact's weights are.

    Raises ArtifactError when its linears are quantized in more than one way, or in a way that the
    exporter does not have.
    """
    found: dict[str, set[_Scheme]] = {"gather": set(), "linear": set()}
    for bundle in artifact.bundles:
        for name in bundle.package.functions:
            for kind, scheme in _schemes(bundle.package.operations(name)):
                found[kind].add(scheme)
    for kind, schemes in found.items():
        if len(schemes) != 1:
            raise ArtifactError(
                f"{artifact.path}: the weights of its {kind} operations are quantized in "
                f"{len(schemes)} ways; one is expected"
            )
    embedding, linear = found["gather"].pop(), found["linear"].pop()
    if linear not in _LINEAR_SCHEMES:
        raise ArtifactError(f"{artifact.path}: linears of {linear} (bits, group) are not known")
    return ExportOptions(
        dtype=dtype,
        embedding_quantize=None if embedding is None else f"{embedding[0]},{embedding[1]}",
        linear_quantize=_LINEAR_SCHEMES[linear],
    )


def _schemes(block: Any) -> Iterator[tuple[str, _Scheme]]:
    """Yield (operation type, scheme) of every weight matrix that a block multiplies or looks up."""
    makers = {output.name: op for op in block.operations for output in op.outputs}
    for operation in block.operations:
        parameter = {"linear": "weight", "gather": "x"}.get(operation.type)
        if parameter is None:
            continue
        maker = makers.get(operation.inputs[parameter].arguments[0].name)
        if maker is not None and maker.type == "const":
            yield operation.type, None
        elif maker is not None and maker.type == "constexpr_blockwise_shift_scale":
            data, scale = (_tensor_type(maker, makers, name) for name in ("data", "scale"))
            columns, scales = (t.dimensions[-1].constant.size for t in (data, scale))
            group = 0 if scales == 1 else columns // max(scales, 1)
            yield operation.type, (_BITS.get(MIL_TYPES[data.dataType].name, 0), group)


def _tensor_type(operation: Any, makers: dict[str, Any], parameter: str) -> Any:
    binding = operation.inputs[parameter].arguments[0]
    if binding.WhichOneof("binding") == "value":
        return binding.value.type.tensorType
    return makers[binding.name].outputs[0].type.tensorType
