"""Describes a model for coremltools: its version, its structure, a plan with devices and costs.

coremltools wraps them as `MLModelStructure`, `MLComputePlan` and `MLComputeDevice`. The stand-in
has one device, the CPU, and runs every operation on it. Only a Mac can tell where Core ML would
place an operation. The cost of an operation is an estimate of ours: its multiplications and the
elements that it reads and writes, as a share of its function's. The rules of specification versions
come from coremltools' `Model.proto`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.artifact import Package
from harness.artifact.files import MAX_AXES, MAX_AXIS_SIZE
from harness.artifact.package import pipeline_of
from harness.artifact.proto import (
    checked_program,
    declared_shape,
    feature_types,
    parse_specification,
)
from harness.errors import ArtifactError

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2
    from coremltools.proto.Model_pb2 import FunctionDescription, Model, ModelDescription

IN_MEMORY = "the model in memory"
NEWEST_VERSION = 10
_OPSETS = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}
_ARRAY_NEEDS = {"float16": 7, "int8": 10}
_STATES = _SEVERAL_FUNCTIONS = 9


# --- the version


def with_lowest_version(specification: bytes) -> bytes:
    """Return a model with the lowest version that supports its opset, arrays, states and functions.

    A pipeline needs what its models need; a model in it that is not an ML Program keeps its own.
    Raises ArtifactError for any other model, and for an ML Program of an unknown opset.
    """
    if not isinstance(specification, bytes):
        raise TypeError(f"a model is bytes, not {type(specification).__name__}")
    model = parse_specification(memoryview(specification), IN_MEMORY)
    model.specificationVersion = _lowest_version(model)
    return model.SerializeToString()


def _lowest_version(model: Model) -> int:
    pipeline = pipeline_of(model)
    if pipeline is None:
        return max(_needs(checked_program(model, IN_MEMORY)))
    versions = [
        _lowest_version(one)
        if one.WhichOneof("Type") == "mlProgram" or pipeline_of(one)
        else one.specificationVersion
        for one in pipeline.models
    ]
    return max(versions, default=model.specificationVersion)


def _needs(model: Model) -> list[int]:
    opsets = [function.opset for function in model.mlProgram.functions.values()]
    unknown = set(opsets) - _OPSETS.keys()
    if unknown or not opsets:
        raise ArtifactError(f"{IN_MEMORY}: no known opset ({', '.join(unknown) or 'none'})")
    needs = [_OPSETS[opset] for opset in opsets]
    if model.description.functions:
        needs.append(_SEVERAL_FUNCTIONS)
    described: list[ModelDescription | FunctionDescription] = [model.description]
    for description in [*described, *model.description.functions]:
        if description.state:
            needs.append(_STATES)
        for feature in (*description.input, *description.output):
            array = feature.type.multiArrayType
            needs.append(_ARRAY_NEEDS.get(feature_types().get(array.dataType, ""), 0))
    return needs


# --- devices


class CPUDeviceProxy:
    """The CPU."""


class GPUDeviceProxy:
    """A GPU; the stand-in has none."""


class NeuralEngineDeviceProxy:
    """A Neural Engine; the stand-in has none."""

    def get_total_core_count(self) -> int:
        """Raise RuntimeError, because the stand-in has no Neural Engine."""
        raise RuntimeError(
            "this machine has no Neural Engine; the stand-in for Core ML computes on the CPU"
        )


def devices() -> list[Any]:
    """Return the compute devices in coremltools' wrappers."""
    from coremltools.models.compute_device import MLCPUComputeDevice

    return [MLCPUComputeDevice(CPUDeviceProxy())]


# --- the structure


class OperationProxy:
    """The proxy of an operation in a model's structure, with its share of the work."""

    def __init__(self, type_: str, cost: float) -> None:
        self.type = type_
        self.cost = cost


class LayerProxy:
    """A layer of a neural network; the stand-in does not read neural networks."""


def model_structure(package: Package) -> Any:
    """Return the structure of a package; raises ArtifactError for a model without programs."""
    from coremltools.models import compute_plan as ct

    if package.stages:
        parts = {
            f"model{number}": model_structure(stage)
            for number, stage in enumerate(package.stages)
            if stage.specification.WhichOneof("Type") != "nonMaximumSuppression"
        }
        return ct.MLModelStructure(None, None, ct.MLModelStructurePipeline(parts))
    functions = {}
    for name, message in package.functions.items():
        block = package.operations(name)
        costs = _costs(message, block, f"{package.what}, function '{name}'")
        functions[name] = ct.MLModelStructureProgramFunction(
            _named(message.inputs), _block(block, costs)
        )
    return ct.MLModelStructure(None, ct.MLModelStructureProgram(functions), None)


def _block(message: MIL_pb2.Block, costs: Iterator[float]) -> Any:
    from coremltools.models import compute_plan as ct

    operations = [_operation(operation, costs) for operation in message.operations]
    return ct.MLModelStructureProgramBlock(
        _named(message.inputs), operations, list(message.outputs)
    )


def _operation(message: MIL_pb2.Operation, costs: Iterator[float]) -> Any:
    from coremltools.models import compute_plan as ct

    proxy = OperationProxy(message.type, next(costs))
    return ct.MLModelStructureProgramOperation(
        inputs={
            name: ct.MLModelStructureProgramArgument([_binding(b) for b in argument.arguments])
            for name, argument in message.inputs.items()
        },
        operator_name=message.type,
        outputs=_named(message.outputs),
        blocks=[_block(block, costs) for block in message.blocks],
        __proxy__=proxy,
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


class ComputePlanProxy:
    """The plan of one package, or the base of coremltools' plan for a remote device."""

    def __init__(self, package: Package | None = None, compute_units: str = "CPU_ONLY") -> None:
        self._structure = None if package is None else model_structure(package)
        if compute_units != "CPU_ONLY":
            warnings.warn(
                f"compute units {compute_units} were requested; only a Mac can plan for a GPU or "
                "a Neural Engine: this plan places every operation on the CPU",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def model_structure(self) -> Any:
        """The `MLModelStructure` whose operations the plan describes."""
        return self._structure

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """Return the CPU as preferred and only device; None for a constant, which has none."""
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        if operation.operator_name == "const":
            return None
        here = devices()
        return MLComputePlanDeviceUsage(here[0], here)

    def get_compute_device_usage_for_neuralnetwork_layer(self, layer: Any) -> None:
        """Return None, because the stand-in does not load neural networks."""
        return None

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        """Return the operation's share of its function's work; None for a constant, which has none.

        The operations in the blocks of another have shares of their own.
        """
        from coremltools.models.compute_plan import MLComputePlanCost

        if operation.operator_name == "const":
            return None
        return MLComputePlanCost(operation.__proxy__.cost)


# --- the estimate of work

_BY_WEIGHT = ("conv", "conv_quantized", "linear")
_BY_INPUT = ("conv_transpose",)


def _costs(function: MIL_pb2.Function, block: MIL_pb2.Block, where: str) -> Iterator[float]:
    """Yield each operation's share of a function's work; those in its blocks follow it.

    Raises ArtifactError, naming `where`, for a tensor beyond the limits of its shape.
    """
    try:
        counts = list(_counts(block, {value.name: _sizes(value.type) for value in function.inputs}))
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from None
    total = sum(counts) or 1.0
    return (count / total for count in counts)


def _counts(block: MIL_pb2.Block, known: dict[str, list[int]]) -> Iterator[float]:
    """Yield the work of each operation; `known` has the sizes of the values with a name."""
    known |= {value.name: _sizes(value.type) for value in block.inputs}
    for operation in block.operations:
        results = [_sizes(output.type) for output in operation.outputs]
        yield 0.0 if operation.type == "const" else _work(operation, known, results)
        for inner in operation.blocks:
            yield from _counts(inner, dict(known))
        known |= {o.name: s for o, s in zip(operation.outputs, results, strict=True)}


def _work(
    operation: MIL_pb2.Operation, known: Mapping[str, list[int]], results: list[list[int]]
) -> float:
    """Return the elements that an operation reads and writes, and its multiplications."""
    operands = {
        name: [known.get(b.name, []) if b.name else _sizes(b.value.type) for b in one.arguments]
        for name, one in operation.inputs.items()
    }
    moved = sum(math.prod(sizes) for many in operands.values() for sizes in many)
    made = sum(math.prod(sizes) for sizes in results)
    first = {name: many[0] for name, many in operands.items() if many}
    per_element = 0
    if operation.type in _BY_WEIGHT and "weight" in first:
        per_element = math.prod(first["weight"][1:])
    elif operation.type in _BY_INPUT and {"x", "weight"} <= first.keys():
        return moved + made + math.prod(first["x"]) * math.prod(first["weight"][1:])
    elif operation.type in ("matmul", "einsum") and first:
        per_element = max(math.prod(sizes[-1:]) for sizes in first.values())
    elif operation.type == "scaled_dot_product_attention" and {"query", "key"} <= first.keys():
        return moved + made + 2 * math.prod(first["query"]) * math.prod(first["key"][-2:-1])
    elif operation.type in ("lstm", "gru", "rnn") and "x" in first:
        weights = sum(math.prod(s) for n, s in first.items() if n.startswith("weight"))
        return moved + made + math.prod(first["x"][:-1]) * weights
    return moved + made * (1 + per_element)


def _sizes(message: MIL_pb2.ValueType) -> list[int]:
    """Return a tensor's sizes, 1 where they are flexible; those of no tensor are none."""
    if message.WhichOneof("type") != "tensorType":
        return []
    sizes = [1 if size is None else size for size in declared_shape(message.tensorType)]
    if len(sizes) > MAX_AXES or max(sizes, default=0) > MAX_AXIS_SIZE:
        raise ArtifactError(
            f"a tensor has {len(sizes)} axes, the largest of size {max(sizes)}; at most {MAX_AXES} "
            f"axes of at most {MAX_AXIS_SIZE} are allowed"
        )
    return sizes
