"""The structure of an ML Program, as coremltools' `MLModelStructure` shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.artifact import Package


class OperationProxy:
    """Stands in an operation's structure for the operation itself."""

    def __init__(self, type_: str) -> None:
        self.type = type_


class LayerProxy:
    """A layer of a neural network; the stand-in reads none."""


def model_structure(package: Package) -> Any:
    """Return the structure of a package's functions; raises ArtifactError for no ML Program."""
    from coremltools.models import compute_plan as ct

    functions = {
        name: ct.MLModelStructureProgramFunction(
            _named(message.inputs), _block(package.operations(name))
        )
        for name, message in package.functions.items()
    }
    return ct.MLModelStructure(None, ct.MLModelStructureProgram(functions), None)


def _block(message: Any) -> Any:
    from coremltools.models import compute_plan as ct

    operations = [_operation(operation) for operation in message.operations]
    return ct.MLModelStructureProgramBlock(
        _named(message.inputs), operations, list(message.outputs)
    )


def _operation(message: Any) -> Any:
    from coremltools.models import compute_plan as ct

    return ct.MLModelStructureProgramOperation(
        inputs={
            name: ct.MLModelStructureProgramArgument([_binding(b) for b in argument.arguments])
            for name, argument in message.inputs.items()
        },
        operator_name=message.type,
        outputs=_named(message.outputs),
        blocks=[_block(block) for block in message.blocks],
        __proxy__=OperationProxy(message.type),
    )


def _binding(message: Any) -> Any:
    from coremltools.models import compute_plan as ct

    if message.WhichOneof("binding") == "name":
        return ct.MLModelStructureProgramBinding(message.name, None)
    return ct.MLModelStructureProgramBinding(None, ct.MLModelStructureProgramValue())


def _named(messages: Iterable[Any]) -> list[Any]:
    from coremltools.models import compute_plan as ct

    return [
        ct.MLModelStructureProgramNamedValueType(
            message.name, ct.MLModelStructureProgramValueType()
        )
        for message in messages
    ]
