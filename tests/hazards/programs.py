"""Small models as coremltools converts them, what they give, and the hazards found in them."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from harness.artifact import Package, open_artifact
from harness.artifact.hazards import hazards_of
from harness.artifact.package import DATA, MANIFEST
from harness.artifact.proto import proto_module
from harness.runtimes import get_runtime
from tests.mil.programs import saved

Rows = list[tuple[str, dict[str, Any], list[tuple[str, str, tuple[int, ...]]]]]
"""Operations: a type, the parameters, and the results' names, dtypes and shapes."""
_PRECISIONS = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}
_KINDS = {
    "f2": ("FLOAT16", "bytes"),
    "f4": ("FLOAT32", "floats"),
    "i4": ("INT32", "ints"),
    "b1": ("BOOL", "bools"),
}


def convert(source, *, target="iOS18", precision="fp16", **options):
    """Convert a traced module or a MIL program by all passes; return a model of coremltools."""
    with warnings.catch_warnings(), np.errstate(over="ignore"):  # numpy tells of some hazards
        warnings.simplefilter("ignore")
        return ct.convert(
            source,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=_PRECISIONS[precision],
            skip_model_load=True,
            **options,
        )


def converted(source, *, mutate=lambda model: model, **options):
    """Convert like `convert`; return the package, held in memory."""
    return saved(mutate(convert(source, **options)))


def traced(module, *example):
    """Trace a module; states change between the runs of a check, so there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module.eval(), example, check_trace=False)


class Calls(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def exported(module, inputs, folder, *, precision="fp32", target="iOS17", shapes=None, skip=()):
    """Trace and convert a module or a function of `inputs`; return the path of the package.

    `shapes` has shapes of inputs in which a size may be a range; `skip` are passes.
    """
    model = module if isinstance(module, torch.nn.Module) else Calls(module)
    declared = [
        ct.TensorType(
            name,
            _shape((shapes or {}).get(name, tensor.shape)),
            np.int32 if not tensor.dtype.is_floating_point else np.float32,
        )
        for name, tensor in inputs.items()
    ]
    program = traced(model, *inputs.values())
    return _written(program, folder, skip, precision=precision, target=target, inputs=declared)


def built(function, inputs, folder, *, precision="fp32", target="iOS17", skip=()):
    """Convert a program of MIL's builder with inputs [(dtype, shape)]; return the path."""
    with np.errstate(invalid="ignore"):
        made = program(*((shape, dtype) for dtype, shape in inputs), target=target)(function)
    return _written(made, folder, skip, precision=precision, target=target)


def _shape(sizes):
    return ct.Shape([one if isinstance(one, int) else ct.RangeDim(*one) for one in sizes])


def _written(source, folder, skip, **options):
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(skip)
    path = folder / "model.mlpackage"
    convert(source, pass_pipeline=pipeline, **options).save(str(path))
    return path


def given(path, *tensors, policy="strict"):
    """Return what a package gives in our executor."""
    artifact = open_artifact(path)
    method = get_runtime(f"mil:{policy}").load(artifact, artifact.methods[0])
    return list(method(*tensors))


def hazards(path):
    """Return code and place of each hazard of what converters emit, H01 to H19."""
    package = Package.from_folder(path)
    return [
        (code, found.place)
        for name in package.functions
        for code, found in hazards_of(package, name)
        if code < "H20"
    ]


def program(*specs, target="iOS18"):
    """Return a decorator that makes a MIL program of a function with inputs [(shape, dtype)]."""
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

    `inputs` maps names to a dtype and a shape. A parameter is a name, a list of names, or a
    constant. The last operation gives the outputs.
    """
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
            elif isinstance(given, (str, list)):
                for one in [given] if isinstance(given, str) else given:
                    operation.inputs[name].arguments.add(name=one)
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
