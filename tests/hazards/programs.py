"""Small programs as coremltools makes them, and what the lints of hazards say of them."""

from __future__ import annotations

import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import torch

from harness.artifact import Package
from harness.artifact.hazards import hazards_of


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
