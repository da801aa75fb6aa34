"""Lowers a stage to an ML Program function: `torch.export`, then `coremltools.convert`.

The weights stay inputs of the function, so that neither tool copies, compares or folds their
numbers. All blocks are lowered as one. A model of a billion weights is therefore converted as fast
as one of a thousand. `link` chains stages into the function of a partition;
`harness.export.weight_store` replaces the inputs with the weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.errors import ConversionError, HarnessError
from harness.export.graph import StageModule
from harness.export.plan import FLOATS, Partition, Stage
from harness.files import private_folder
from harness.models import ModelConfig

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2
    from torch.export import ExportedProgram

_CORE_ML_DTYPES = {"int64": torch.int32}  # Core ML has no int64: the caller converts


def lower(config: ModelConfig, stage: Stage, dtype: str) -> MIL_pb2.Function:
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


def _capture(config: ModelConfig, stage: Stage, dtype: str) -> ExportedProgram:
    real: torch.dtype = getattr(torch, FLOATS[dtype])

    def example(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros((), dtype=dtype).expand(shape)  # one number for any shape

    inputs = [
        example(_CORE_ML_DTYPES.get(value.dtype) or getattr(torch, value.dtype), value.shape)
        for value in stage.inputs
    ]
    weights = [example(real, piece.shape) for piece in stage.pieces]
    module = StageModule(config, stage)
    exported = torch.export.export(module, (inputs, weights), strict=False)
    captured: ExportedProgram = exported.run_decompositions({})
    return captured


def _convert(captured: ExportedProgram, dtype: str) -> MIL_pb2.Program:
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
            kind = type(error).__name__
            raise ConversionError(
                "coremltools cannot convert the model", kind, str(error)
            ) from error
        program: MIL_pb2.Program = model.get_spec().mlProgram
        return program


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


def link(partition: Partition, functions: Sequence[MIL_pb2.Function]) -> MIL_pb2.Function:
    """Return the `Function` message of a partition, made of one message for each of its stages.

    Its inputs are the partition's inputs, by their own names, then its weight pieces, named by
    `weight_input`; its outputs are the partition's. The names of inner values begin with the stage.
    """
    linked = type(functions[0])(opset=functions[0].opset)
    block = linked.block_specializations[linked.opset]
    declared: dict[str, MIL_pb2.ValueType] = {}
    first_piece = 0
    for number, (stage, function) in enumerate(zip(partition.stages, functions, strict=True)):
        pieces = range(first_piece, first_piece + len(stage.pieces))
        first_piece = pieces.stop
        inputs = [value.name for value in stage.inputs] + [weight_input(i) for i in pieces]
        own = function.block_specializations[function.opset]
        names = dict(zip((value.name for value in function.inputs), inputs, strict=True))
        names |= dict(zip(own.outputs, (value.name for value in stage.outputs), strict=True))
        for value, name in zip(function.inputs, inputs, strict=True):
            declared.setdefault(name, value.type)
        for operation in own.operations:
            added = block.operations.add()
            added.CopyFrom(operation)
            _rename(added, names, f"{stage.kind}_{number}_")
    taken = [value.name for value in partition.inputs]
    for name in [*taken, *(weight_input(i) for i in range(first_piece))]:
        linked.inputs.add(name=name).type.CopyFrom(declared[name])
    block.outputs.extend(value.name for value in partition.outputs)
    return linked


def weight_input(number: int) -> str:
    """Return the name of the function input for a partition's weight piece of that number."""
    return f"weight_{number}"


def _rename(operation: MIL_pb2.Operation, names: Mapping[str, str], prefix: str) -> None:
    """Rename all values of an operation by `names`; a value that it lacks gets the prefix."""

    def renamed(name: str) -> str:
        return names.get(name, f"{prefix}{name}")

    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                binding.name = renamed(binding.name)
    for output in operation.outputs:
        output.name = renamed(output.name)
    text = operation.attributes["name"].immediateValue.tensor.strings.values
    text[0] = renamed(text[0])
