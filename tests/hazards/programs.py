"""Small programs as coremltools makes them, and what the lints of hazards say of them."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.artifact import Package
from harness.artifact.hazards import hazards_of
from harness.artifact.package import DATA, MANIFEST

Rows = list[tuple[str, dict[str, Any], list[tuple[str, str, tuple[int, ...]]]]]
"""Operations: a type, the parameters, and the results' names, dtypes and shapes."""
_KINDS = {
    "f2": ("FLOAT16", "bytes"),
    "f4": ("FLOAT32", "floats"),
    "i4": ("INT32", "ints"),
    "b1": ("BOOL", "bools"),
}


def converted(
    source, *, target="iOS18", precision="FLOAT16", mutate=lambda model: model, **options
):
    """Convert a traced module or a MIL program by all passes; return the package."""
    import coremltools as ct

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            source,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=getattr(ct.precision, precision),
            skip_model_load=True,
            **options,
        )
        return saved(mutate(model))


def saved(model):
    """Save a model of coremltools; return its package, held in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        package = Package.from_folder(path)
        for name in package.files:  # map them all while they are there
            _ = package.files[name]
    return package


def traced(module, *example):
    """Trace a module; states change between the runs of a check, so there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module.eval(), example, check_trace=False)


def program(*specs, target="iOS18"):
    """Return a decorator that makes a MIL program of a function with inputs [(shape, dtype)]."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    kinds = {"fp16": types.fp16, "fp32": types.fp32, "int32": types.int32, "bool": types.bool}
    inputs = [mb.TensorSpec(shape, dtype=kinds[dtype]) for shape, dtype in specs]
    return mb.program(input_specs=inputs, opset_version=getattr(ct.target, target))


def found(package, function="main"):
    """Return the places of each hazard of a function, by code."""
    places = defaultdict(list)
    for code, hazard in hazards_of(package, function):
        places[code].append(hazard.place)
    return dict(places)


def assembled(inputs, rows):
    """Return a package of operations that no converter needs to accept; `rows` are `Rows`.

    `inputs` maps names to a dtype and a shape. A parameter is a name or a constant.
    The last operation gives the outputs.
    """
    from harness.artifact.proto import proto_module

    model = proto_module("Model_pb2").Model()
    function = model.mlProgram.functions["main"]
    function.opset = "CoreML7"
    for name, kind in inputs.items():
        _declare(function.inputs.add(name=name).type, *kind)
    block, results = function.block_specializations["CoreML7"], ()
    for kind, parameters, results in rows:
        operation = block.operations.add(type=kind)
        for name, given in parameters.items():
            if kind == "const":
                _fill(operation.attributes[name], given)
            elif isinstance(given, str):
                operation.inputs[name].arguments.add(name=given)
            else:
                _fill(operation.inputs[name].arguments.add().value, given)
        for name, dtype, shape in results:
            _declare(operation.outputs.add(name=name).type, dtype, shape)
    block.outputs.extend(name for name, _, _ in results)
    path = f"{DATA}/model.mlmodel"
    manifest = {
        "rootModelIdentifier": "1",
        "itemInfoEntries": {"1": {"path": path.removeprefix("Data/")}},
    }
    files = {MANIFEST: json.dumps(manifest).encode(), path: model.SerializeToString()}
    return Package({name: memoryview(data) for name, data in files.items()}, "assembled")


def _declare(message, dtype, shape):
    from harness.artifact.proto import proto_module

    message.tensorType.dataType = proto_module("MIL_pb2").DataType.Value(dtype)
    message.tensorType.rank = len(shape)
    for size in shape:
        message.tensorType.dimensions.add().constant.size = size


def _fill(message, value):
    value = np.asarray(value)
    dtype, field = _KINDS[value.dtype.str[1:]]
    _declare(message.type, dtype, value.shape)
    tensor = message.immediateValue.tensor
    if field == "bytes":
        tensor.bytes.values = value.tobytes()
    else:
        getattr(tensor, field).values.extend(value.reshape(-1).tolist())
