"""The three executors. Each converts a module, and returns what runs it on inputs."""

from __future__ import annotations

import asyncio
import copy
import os
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.child import POLICY_VARIABLE
from harness.errors import HarnessError
from harness.suites.expendable import sentence

Inputs = Sequence[Tensor]
Run = Callable[[Inputs], list[Tensor]]


class Refused(HarnessError):
    """A converter does not take a subject."""


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a module with parameters and buffers in a dtype."""
    return copy.deepcopy(module).to(dtype).eval()


def eager(module: nn.Module, inputs: Inputs, precision: str) -> Run:
    """Run a module by PyTorch."""
    return lambda values: flat(module(*values))


def ours(module: nn.Module, inputs: Inputs, precision: str) -> Run:
    """Convert a trace in fp32 by coremltools, computing in `precision`; run by our executor."""
    import coremltools as ct

    os.environ[POLICY_VARIABLE] = "strict"  # casts round
    kind = {"fp32": np.float32, "fp16": np.float16}[precision]
    given = [
        ct.TensorType(f"x{i}", x.shape, kind if x.is_floating_point() else np.int32)
        for i, x in enumerate(inputs)
    ]
    module = in_precision(module, torch.float32)
    example = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    wanted = flat(module(*example))
    results = [f"y{i}" for i in range(len(wanted))]
    try:
        made = ct.convert(
            torch.jit.trace(module, example, check_trace=False),
            inputs=given,
            outputs=[ct.TensorType(name, dtype=kind) for name in results],
            compute_precision={"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}[
                precision
            ],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
    except Exception as error:  # a converter's errors are of any kind
        raise Refused(sentence(error)) from error
    model = ct.models.MLModel(made.package_path)  # an error here is our executor's
    if model._framework_error is not None:
        raise HarnessError(f"refused at load: {sentence(model._framework_error)}")

    def run(values: Inputs) -> list[Tensor]:
        found = model.predict({f"x{i}": value.numpy() for i, value in enumerate(values)})
        return [torch.from_numpy(np.asarray(found[name])) for name in results]

    return run


def core_ai(module: nn.Module, inputs: Inputs, precision: str) -> Run:
    """Convert by coreai-torch and run by Core AI's interpreter."""
    from coreai.runtime import NDArray
    from coreai_torch import TorchConverter

    exported = torch.export.export(module, tuple(inputs)).run_decompositions(_decompositions())
    try:
        program = TorchConverter().add_exported_program(exported).to_coreai()
        with tempfile.TemporaryDirectory(suffix=".aimodel") as folder:
            function = _wait(_loaded(program.save_asset(Path(folder) / "subject.aimodel")))
    except Exception as error:
        raise Refused(sentence(error)) from error
    names = list(function.desc.input_names)
    results = list(function.desc.output_names)

    def run(values: Inputs) -> list[Tensor]:
        given = {n: NDArray(v.numpy()) for n, v in zip(names, values, strict=True)}
        found = _wait(function(given))
        return [torch.from_numpy(np.array(found[name].numpy())) for name in results]

    return run


async def _loaded(asset: Any) -> Any:
    """Return the function of an asset, which needs its files no longer."""
    model = await asset.executable().__aenter__()
    return model.load_function("main")


EXECUTORS: dict[str, Callable[[nn.Module, Inputs, str], Run]] = {
    "pytorch": eager,
    "mil": ours,
    "core-ai": core_ai,
}


@cache
def _decompositions() -> Any:
    from coreai_torch import get_decomp_table

    return get_decomp_table()


_LOOP = asyncio.new_event_loop()


def _wait(work: Coroutine[Any, Any, Any]) -> Any:
    return _LOOP.run_until_complete(work)


def flat(found: Any) -> list[Tensor]:
    """Return the outputs of a module as a list."""
    return [found] if isinstance(found, Tensor) else list(found)


def reference(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return what a module gives in fp64."""
    wide = in_precision(module, torch.float64)
    return flat(wide(*(x.double() if x.is_floating_point() else x for x in inputs)))
