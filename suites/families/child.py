"""A child process that converts a family's model by coremltools, predicts, and compares."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from harness.child import POLICY_VARIABLE, limit_memory, serve
from harness.shim import install
from harness.suites.expendable import sentence
from harness.suites.families.models import FAMILIES, Family

MEMORY = 8 << 30
SINGLE_BOUND = 1e-5  # of the largest output: sums of fp32 in another order
HALF_FLOOR = 8 * 2.0**-11  # eight roundings to fp16, beside what eager PyTorch loses in fp16
HALF_FACTOR = 4.0
HALF_CEILING = 0.125
POLICIES = {"fp32": "widen", "fp16": "strict"}
LARGEST = 64  # of a flexible axis, in steps of its least length


@cache
def prepared(name: str) -> nn.Module:
    """Return a family's module with random parameters, norms and biases included."""
    torch.manual_seed(0)
    module = FAMILIES[name].make().eval()
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=drawn))
    return module


def judged(request: dict[str, str]) -> dict[str, Any]:
    """Return the outcome of one family in one precision, at fixed or at flexible lengths."""
    warnings.simplefilter("ignore")
    name, precision = request["family"], request["precision"]
    flexible = request["lengths"] == "flexible"
    family, module = FAMILIES[name], prepared(name)
    if flexible and not family.axes:
        return {"outcome": "skip", "reason": "its parameters fix the length"}
    lengths = family.lengths if flexible else family.lengths[:1]
    os.environ[POLICY_VARIABLE] = POLICIES[precision]
    refused = []
    for route in (_traced, _exported):
        try:
            source, model = route(module, family, flexible, precision)
        except Exception as error:  # a converter's errors are of any kind
            refused.append(f"{route.__name__[1:]}: {sentence(error)}")
            continue
        model = loaded(model)
        refusal = model._framework_error
        if refusal is not None:
            return {"outcome": "fail", "reason": f"refused at load: {sentence(refusal)}"}
        made = {"route": route.__name__[1:]}
        return made | _compared(model, source, module, family, lengths, precision)
    return {"outcome": "skip", "reason": f"coremltools does not convert it ({'; '.join(refused)})"}


def loaded(model: Any) -> Any:
    """Load a converted model; an error here is our executor's, and never the converter's."""
    import coremltools as ct

    return ct.models.MLModel(model.package_path)


def _precision(name: str) -> Any:
    import coremltools as ct

    return {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}[name]


def _traced(
    module: nn.Module, family: Family, flexible: bool, precision: str
) -> tuple[Callable[[Tensor], Tensor], Any]:
    import coremltools as ct
    import numpy as np

    x = family.example(family.lengths[0])
    with torch.no_grad():
        source = torch.jit.trace(module, x, check_trace=False)
    shape: list[Any] = list(x.shape)
    if flexible:
        least = min(family.lengths)
        sides = [ct.RangeDim(least, LARGEST * least, default=x.shape[axis]) for axis in family.axes]
        for axis, side in zip(family.axes, sides, strict=True):
            shape[axis] = side
    kind = np.float32 if x.is_floating_point() else np.int32
    model = ct.convert(
        source,
        inputs=[ct.TensorType("x", shape, kind)],
        compute_precision=_precision(precision),
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    return source, model


def _exported(
    module: nn.Module, family: Family, flexible: bool, precision: str
) -> tuple[Callable[[Tensor], Tensor], Any]:
    import coremltools as ct

    x = family.example(family.lengths[0])
    least = min(family.lengths)
    dims = {
        axis: torch.export.Dim(f"n{axis}", min=least, max=LARGEST * least) for axis in family.axes
    }
    source = torch.export.export(module, (x,), dynamic_shapes=(dims,) if flexible else None)
    model = ct.convert(
        source.run_decompositions({}),
        compute_precision=_precision(precision),
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    return source.module(), model


@torch.no_grad()
def _compared(
    model: Any,
    source: Callable[[Tensor], Tensor],
    module: nn.Module,
    family: Family,
    lengths: tuple[int, ...],
    precision: str,
) -> dict[str, Any]:
    """Predict at each length and compare with eager PyTorch."""
    spec = model.get_spec()
    given, returned = spec.description.input, spec.description.output
    errors, bounds, compared = [], [], 0
    for length in lengths:
        x = family.example(length)
        wanted = module(x)
        try:
            drift = _relative(source(x), wanted)
        except Exception as error:
            reason = f"what coremltools was given does not run at length {length}: "
            return {"outcome": "skip", "reason": reason + sentence(error)}
        if not drift <= SINGLE_BOUND:
            reason = f"what coremltools was given is off by {drift:.2g} at length {length} itself"
            return {"outcome": "skip", "reason": reason}
        try:
            found = torch.from_numpy(model.predict({given[0].name: x.numpy()})[returned[0].name])
        except RuntimeError as error:
            reason = f"refused at length {length}: {sentence(error)}"
            return {"outcome": "fail", "reason": reason}
        if found.shape != wanted.shape:
            reason = f"shape {list(found.shape)}, not {list(wanted.shape)}, at length {length}"
            return {"outcome": "fail", "reason": reason}
        errors.append(_relative(found, wanted))
        bounds.append(SINGLE_BOUND if precision == "fp32" else _half_bound(module, x, wanted))
        compared += found.numel()
    worst = max(range(len(lengths)), key=lambda place: errors[place] / bounds[place])
    main = spec.mlProgram.functions["main"]
    operations = len(main.block_specializations[main.opset].operations)
    measured: dict[str, Any] = {
        "error": errors[worst],
        "bound": bounds[worst],
        "comparisons": compared,
    }
    measured["operations"] = operations
    if errors[worst] <= bounds[worst]:
        return measured | {"outcome": "pass", "reason": ""}
    reason = f"off by {errors[worst]:.3g} at length {lengths[worst]} (<= {bounds[worst]:.3g})"
    return measured | {"outcome": "fail", "reason": reason}


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, divided by the largest magnitude; infinite for NaN."""
    difference = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")


def _half_bound(module: nn.Module, x: Tensor, wanted: Tensor) -> float:
    """Return the bound in fp16, from what eager PyTorch loses where it runs in fp16."""
    try:
        half = copy.deepcopy(module).half()
        lost = _relative(half(x.half() if x.is_floating_point() else x), wanted)
    except RuntimeError:  # an operation without fp16 on a CPU, or mixed types
        lost = 0.0
    return min(max(HALF_FLOOR, HALF_FACTOR * lost), HALF_CEILING) if lost < 1 else HALF_FLOOR


if __name__ == "__main__":
    install()  # before anything imports coremltools
    limit_memory(MEMORY)
    serve(judged)
