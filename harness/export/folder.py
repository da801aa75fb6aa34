"""Writes an exported folder; `harness.artifact.exported` reads it and documents its layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.artifact.delegate import METADATA, PACKAGE, MethodMetadata, ModelMetadata
from harness.artifact.exported import CONSTANTS, FORMAT, PROGRAM, VERSION
from harness.artifact.package import SPECIFICATION, write_manifest
from harness.artifact.proto import feature_types, new_model
from harness.export.options import ExportOptions
from harness.export.plan import MethodPlan, PackagePlan, Partition, Value
from harness.models import ModelConfig

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Function
    from coremltools.proto.Model_pb2 import (
        FeatureDescription,
        FunctionDescription,
        Model,
        ModelDescription,
    )
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

SPECIFICATION_VERSION = 9  # iOS 18: int4 data, blockwise scales, several functions
SINGLE_FUNCTION = "main"
_PASSED_AS = {"int64": "int32"}  # the delegate converts: Core ML has no arrays of int64

Constant = int | np.ndarray


def write_package(
    folder: Path, plan: PackagePlan, functions: Mapping[str, Function], weights_digest: bytes
) -> None:
    """Write a package's specification, manifest and `metadata.json` beside its weight file.

    `functions` holds a `Function` message for each member. The content determines identifiers.
    """
    specification = _model(plan, functions).SerializeToString(deterministic=True)
    (folder / PACKAGE / SPECIFICATION).write_bytes(specification)
    digest = hashlib.sha256(weights_digest + specification).digest()
    write_manifest(folder / PACKAGE, digest)
    names = {method: _names(partition) for method, partition in plan.members}
    identifier = f"harness_{digest[:16].hex()}"
    if plan.multifunction:
        metadata = ModelMetadata(identifier, methods=names)
    else:
        metadata = ModelMetadata(identifier, single=names[plan.members[0][0]])
    (folder / METADATA).write_bytes(metadata.to_bytes())


def _model(plan: PackagePlan, functions: Mapping[str, Function]) -> Model:
    model = new_model()
    model.specificationVersion, model.mlProgram.version = SPECIFICATION_VERSION, 1
    for method, partition in plan.members:
        name = SINGLE_FUNCTION
        description: FunctionDescription | ModelDescription = model.description
        if plan.multifunction:
            name, description = method, model.description.functions.add(name=method)
        model.mlProgram.functions[name].CopyFrom(functions[method])
        _describe(description.input, partition.inputs)
        _describe(description.output, partition.outputs)
    if plan.multifunction:
        model.description.defaultFunctionName = plan.members[0][0]
    return model


def write_program(
    folder: Path,
    methods: Sequence[MethodPlan],
    packages: Sequence[PackagePlan],
    constants: Mapping[str, Constant],
) -> None:
    """Write `program.json` and `constants.bin`, the files that make a folder an export."""
    data = bytearray()
    described: dict[str, Any] = {}
    for name, value in constants.items():
        if isinstance(value, int):
            described[name] = value
            continue
        little = value.astype(value.dtype.newbyteorder("<"))
        described[name] = {"dtype": value.dtype.name, "shape": value.shape, "offset": len(data)}
        data += little.tobytes()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "methods": {method.name: _method(method, packages) for method in methods},
        "constants": described,
    }
    (folder / CONSTANTS).write_bytes(data)
    (folder / PROGRAM).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def program_constants(
    config: ModelConfig, options: ExportOptions, methods: Sequence[MethodPlan]
) -> dict[str, int | np.ndarray]:
    """Return the constants from which a runner learns how to call an export's methods, by name.

    The names are those of ExecuTorch's exporter; `harness.generate.layout` reads them. RoPE tables
    are exact, rounded once to the export's dtype.
    """
    from harness.models.model import rope_tables
    from harness.models.quantize import DTYPES

    cos, sin = rope_tables(config, options.max_context_len, DTYPES[options.dtype])
    found: dict[str, int | np.ndarray] = {
        "vocab_size": config.vocab_size,
        "head_dim": config.head_dim,
        "n_heads_per_cache": config.n_kv_heads,
        "freqs_cos": cos.numpy(),
        "freqs_sin": sin.numpy(),
    }
    for method in methods:
        found |= _of_method(method, config.n_layers, options.cache_len)
    return found


def _of_method(method: MethodPlan, n_layers: int, cache_len: int) -> dict[str, int | np.ndarray]:
    inputs = {value.name: index for index, value in enumerate(method.inputs)}
    outputs = {value.name: index for index, value in enumerate(method.outputs)}
    rows = [
        (
            *(inputs[f"k_cache_{layer}"], outputs[f"new_k_{layer}"]),
            *(inputs[f"v_cache_{layer}"], outputs[f"new_v_{layer}"]),
            cache_len,
        )
        for layer in range(n_layers)
    ]
    prefix = method.prefix
    return {
        f"{prefix or 'forward_'}input_len": method.input_len,
        f"{prefix}freqs_cos_input_index": np.array([inputs["freqs_cos"]]),
        f"{prefix}freqs_sin_input_index": np.array([inputs["freqs_sin"]]),
        f"{prefix}mask_specs": np.array([[inputs["mask"], cache_len]]),
        f"{prefix}kv_cache_specs": np.array(rows),
    }


def _method(method: MethodPlan, packages: Sequence[PackagePlan]) -> dict[str, Any]:
    made = [value for partition in method.partitions for value in partition.outputs]
    return {
        "values": {v.name: [v.dtype, v.shape] for v in (*method.inputs, *made)},
        "inputs": [value.name for value in method.inputs],
        "outputs": [value.name for value in method.outputs],
        "calls": [
            {"package": package.name, "function": package.function_of(method.name)}
            for package in packages
            if method.name in dict(package.members)
        ],
    }


def _describe(
    features: RepeatedCompositeFieldContainer[FeatureDescription], values: Sequence[Value]
) -> None:
    numbers = {dtype: number for number, dtype in feature_types().items()}
    for value in values:
        array = features.add(name=value.name).type.multiArrayType
        array.shape.extend(value.shape)
        array.dataType = numbers[_PASSED_AS.get(value.dtype, value.dtype)]


def _names(partition: Partition) -> MethodMetadata:
    return MethodMetadata(
        tuple(value.name for value in partition.inputs),
        tuple(value.name for value in partition.outputs),
    )
