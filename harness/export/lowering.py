"""Lowers a stage to an ML Program function: `torch.export`, then `coremltools.convert`.

The weights stay inputs of the function, so that neither tool copies, compares or folds their
numbers. All blocks are lowered as one. A model of a billion weights is therefore converted as fast
as one of a thousand. :mod:`harness.export.linking` chains stages, :mod:`harness.export.filling`
replaces the inputs with the weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.export.graph import StageModule
from harness.export.plan import FLOATS, Stage
from harness.files import private_folder
from harness.models import ModelConfig

_CORE_ML_DTYPES = {"int64": torch.int32}  # Core ML has no int64: the caller converts


def lower(config: ModelConfig, stage: Stage, dtype: str) -> Any:
    """Return the stage's `Function` message, for iOS 18; `dtype` is `fp16` or `fp32`.

    Its inputs are the stage's inputs, then its weight pieces; its block's outputs are the stage's.
    All are in order; their names have no meaning. Raises HarnessError with coremltools' reason when
    it cannot convert the graph.
    """
    with _quiet():
        program = _convert(_capture(config, stage, dtype), dtype)
    function = program.functions["main"]
    given = [value.name for value in function.inputs]
    wanted = [f"inputs_{i}" for i in range(len(stage.inputs))]
    wanted += [f"weights_{i}" for i in range(len(stage.pieces))]
    made = len(function.block_specializations[function.opset].outputs)
    if given != wanted or made != len(stage.outputs):
        raise HarnessError(
            f"the {stage.kind} became a function of inputs {given} and {made} outputs, not "
            f"{wanted} and {len(stage.outputs)}; install coremltools 9.0"
        )
    return function


def _capture(config: ModelConfig, stage: Stage, dtype: str) -> Any:
    real: torch.dtype = getattr(torch, FLOATS[dtype])

    def example(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros((), dtype=dtype).expand(shape)  # one number for any shape

    inputs = [
        example(_CORE_ML_DTYPES.get(value.dtype) or getattr(torch, value.dtype), value.shape)
        for value in stage.inputs
    ]
    weights = [example(real, piece.shape) for piece in stage.pieces]
    module = StageModule(config, stage)
    return torch.export.export(module, (inputs, weights), strict=False).run_decompositions({})


def _convert(captured: Any, dtype: str) -> Any:
    import coremltools as ct

    precision = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}[dtype]
    with private_folder("harness-lowering") as folder, _temporaries_in(folder):
        try:
            model = ct.convert(
                captured,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=precision,
                skip_model_load=True,
                package_dir=str(folder / "stage.mlpackage"),
            )
        except Exception as error:  # coremltools raises whatever its passes raise
            raise HarnessError(
                f"coremltools cannot convert the model: {type(error).__name__}: {error}"
            ) from error
        return model.get_spec().mlProgram


@contextlib.contextmanager
def _temporaries_in(folder: Path) -> Iterator[None]:
    """Put coremltools' temporary files into a folder, which the caller deletes.

    coremltools keeps them until the process ends, or for ever if it is interrupted.
    """
    previous = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = previous


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and the warnings that a user cannot act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
