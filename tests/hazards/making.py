"""Small models as coremltools 9.0 converts them, what they give, and the hazards found in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from harness.artifact import Package, open_artifact
from harness.artifact.hazards import hazards_of
from harness.runtimes import get_runtime

_TYPES = {"fp32": types.fp32, "fp16": types.fp16, "int32": types.int32}
_SPEC = Sequence[int | tuple[int, int]]


def traced(
    module: Callable[..., Any],
    inputs: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    precision: str = "fp32",
    target: str = "iOS17",
    shapes: Mapping[str, _SPEC] | None = None,
    skip: Sequence[str] = (),
) -> Path:
    """Trace a function of tensors and convert it; a size of `shapes` may be a range."""

    class Traced(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            return module(*tensors)

    made = module.eval() if isinstance(module, torch.nn.Module) else Traced().eval()
    program = torch.jit.trace(made, tuple(inputs.values()), check_trace=False)
    declared = [
        ct.TensorType(
            name,
            _shape((shapes or {}).get(name, tensor.shape)),
            np.int32 if not tensor.dtype.is_floating_point else np.float32,
        )
        for name, tensor in inputs.items()
    ]
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(skip)
    return _saved(program, folder, precision, target, inputs=declared, pass_pipeline=pipeline)


def built(
    function: Callable[..., Any],
    inputs: Sequence[tuple[str, Sequence[int]]],
    folder: Path,
    *,
    precision: str = "fp32",
    target: str = "iOS17",
    skip: Sequence[str] = (),
) -> Path:
    """Convert a program of MIL's builder; inputs are a dtype and a shape each."""
    specs = [mb.TensorSpec(shape, dtype=_TYPES[kind]) for kind, shape in inputs]
    opset = getattr(ct.target, target)
    with np.errstate(invalid="ignore"):
        program = mb.program(input_specs=specs, opset_version=opset)(function)
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(skip)
    return _saved(program, folder, precision, target, pass_pipeline=pipeline)


def _shape(sizes: _SPEC) -> Any:
    return ct.Shape([one if isinstance(one, int) else ct.RangeDim(*one) for one in sizes])


def _saved(program: Any, folder: Path, precision: str, target: str, **options: Any) -> Path:
    kind = ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32
    with np.errstate(over="ignore"):  # numpy tells of some of the hazards
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=kind,
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
            **options,
        )
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path


def given(path: Path, *tensors: torch.Tensor, policy: str = "strict") -> list[torch.Tensor]:
    """Return what a package gives in our executor."""
    artifact = open_artifact(path)
    method = get_runtime(f"mil:{policy}").load(artifact, artifact.methods[0])
    return list(method(*tensors))


def hazards(path: Path) -> list[tuple[str, str]]:
    """Return code and place of each hazard of what converters emit, H01 to H19."""
    package = Package.from_folder(path)
    return [
        (code, found.place)
        for name in package.functions
        for code, found in hazards_of(package, name)
        if code < "H20"
    ]
