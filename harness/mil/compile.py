"""Compiles a function of an ML Program, or a block in it, to a list of steps over numbered slots.

Compiling decodes constants, binds parameters, finds implementations and computes constexpr weights,
so that a call runs only the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.artifact.files import max_elements
from harness.artifact.package import Package
from harness.errors import ArtifactError
from harness.mil import ops as _registers_them  # noqa: F401
from harness.mil.block import (
    Block,
    Plan,
    Step,
    built,
    built_at_call,
    with_blocks,
    with_frees,
)
from harness.mil.operation import IMPLEMENTATIONS, Operation, Run, check_known
from harness.mil.packed import PackedWeight
from harness.mil.storage import SharedTensors
from harness.mil.types import Policy, StateType, TensorType, ValueType, broadcast_type, value_type
from harness.mil.values import Constant, read_constant

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2


_WITHOUT_RESULT = ("write_state",)


@dataclass(frozen=True)
class Scope:
    """The facts that all blocks of a function share."""

    package: Package
    where: str
    opset: str
    policy: Policy
    shared: SharedTensors
    max_elements: int


def compile_function(
    package: Package, function: str, policy: Policy, shared: SharedTensors
) -> Plan:
    """Compile a function; add its tensors to `shared`, which the functions of a package share.

    Raise ArtifactError that names function, operation and opset for an operation that is not
    implemented, a value that is used before its definition, or a constant that contradicts itself.
    """
    block = package.operations(function)
    message = package.functions[function]
    where = f"{package.what}, function '{function}'"
    limit = max_elements(package.size)
    scope = Scope(package, where, message.opset, policy, shared, limit)
    return Compiler(scope).compile(message.inputs, block)


class Compiler:
    """Compiles one block; a nested block sees the names of `outer`, the block around it."""

    def __init__(self, scope: Scope, outer: Compiler | None = None) -> None:
        self._scope = scope
        self._outer = outer
        self._where = scope.where
        self._slots: list[Any] = []
        self._types: list[ValueType] = []
        self._names: dict[str, int] = {}
        self._constants: dict[int, Constant] = {}
        self._captures: list[tuple[int, int]] = []

    def compile(self, inputs: Iterable[MIL_pb2.NamedValueType], block: MIL_pb2.Block) -> Plan:
        """Return the plan of a block with these inputs."""
        defined = {value.name: self._input(value) for value in inputs}
        steps = [
            step
            for index, message in enumerate(block.operations)
            if (step := self._compile(message, index)) is not None
        ]
        results = tuple(
            self._tensor(self._lookup(n, f"{self._where}, its outputs")) for n in block.outputs
        )
        constants = {slot for slot, value in enumerate(self._slots) if value is not None}
        return Plan(
            defined,
            {n: (s, self._types[s]) for n, s in zip(block.outputs, results, strict=True)},
            results,
            with_frees(steps, {*results} | constants),
            tuple(self._slots),
            dict(self._names),
            tuple(self._captures),
        )

    def _input(self, value: MIL_pb2.NamedValueType) -> tuple[int, ValueType]:
        where = f"{self._where}, input '{value.name}'"
        declared = value_type(value.type, where)
        if isinstance(declared, StateType) and declared.wrapped.count > self._scope.max_elements:
            raise ArtifactError(
                f"{where}: declares a state of over {self._scope.max_elements} elements"
            )
        return self._define(value.name, declared), declared

    def _define(self, name: str, declared: ValueType) -> int:
        if name in self._names:
            raise ArtifactError(f"{self._where}: value '{name}' is defined twice")
        self._names[name] = self._add(declared)
        return self._names[name]

    def _add(self, declared: ValueType) -> int:
        self._slots.append(None)
        self._types.append(declared)
        return len(self._slots) - 1

    def _lookup(self, name: str, where: str) -> int:
        if name in self._names:
            return self._names[name]
        if self._outer is None:
            raise ArtifactError(f"{where}: uses '{name}' before it is defined")
        there = self._outer._lookup(name, where)
        here = self._define(name, self._outer._types[there])
        if there in self._outer._constants:
            self._constants[here] = self._outer._constants[there]
        elif self._outer._slots[there] is not None:
            self._slots[here] = self._outer._slots[there]
        else:
            self._captures.append((here, there))
        return here

    def _compile(self, message: MIL_pb2.Operation, index: int) -> Step | None:
        """Return the step of an operation, None for one that is computed at load."""
        if not message.outputs and message.type not in _WITHOUT_RESULT:
            raise ArtifactError(f"{self._where}: operation {index}, {message.type}, has no output")
        name = message.outputs[0].name if message.outputs else f"number {index}"
        where = f"{self._where}, {message.type} '{name}'"
        outputs = tuple(value_type(output.type, where) for output in message.outputs)
        self._check_sizes(outputs, where)
        if message.type == "const":
            if "val" not in message.attributes:
                raise ArtifactError(f"{where}: a const without 'val'")
            value = read_constant(message.attributes["val"], self._scope.package, where)
            self._constants[self._define(message.outputs[0].name, value.type)] = value
            return None
        operation, bound = self._bind(message, outputs, where, index)
        if message.type == "select" and isinstance(outputs[0], TensorType):
            operands = [self._types[slot] for slots in bound.values() for slot in slots]
            outputs = (broadcast_type(outputs[0], operands),)
            self._check_sizes(outputs, where)
        if message.type == "stack":
            self._check_equal_shapes(operation, bound.get("values", ()))
        if message.type.startswith("constexpr_"):
            made = self._scope.shared.constexpr(operation, built(operation))
            for output, declared, tensor in zip(message.outputs, outputs, made, strict=True):
                self._slots[self._define(output.name, declared)] = tensor
            return None
        run, reads = self._step(operation, bound, message.blocks)
        writes = tuple(
            self._define(output.name, declared)
            for output, declared in zip(message.outputs, outputs, strict=True)
        )
        names = tuple(output.name for output in message.outputs)
        known = operation.constants
        return Step(run, reads, writes, (), where, outputs, message.type, names, known)

    def _check_equal_shapes(self, operation: Operation, slots: Sequence[int]) -> None:
        """Raise ArtifactError for values of unequal declared shapes, which Core ML refuses, too."""
        types = [self._types[slot] for slot in slots]
        shapes = {t.shape for t in types if isinstance(t, TensorType) and t.is_fixed}
        if len(shapes) > 1:
            found = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise operation.error(
                f"values of shapes {found} cannot be stacked, and Core ML refuses the model; "
                "give them one shape by expand_dims or reshape"
            )

    def _check_sizes(self, outputs: Sequence[ValueType], where: str) -> None:
        counts = [declared.count for declared in outputs if isinstance(declared, TensorType)]
        if max(counts, default=0) > self._scope.max_elements:
            raise ArtifactError(
                f"{where}: declares a result of over {self._scope.max_elements} elements"
            )

    def _bind(
        self, message: MIL_pb2.Operation, outputs: tuple[ValueType, ...], where: str, index: int
    ) -> tuple[Operation, dict[str, tuple[int, ...]]]:
        """Return the `Operation` for the builder, and the slots of each of its inputs."""
        implementation = IMPLEMENTATIONS.get(message.type)
        if implementation is None:
            raise ArtifactError(
                f"{where}: operation '{message.type}' of opset {self._scope.opset} is not "
                f"implemented; it is number {index} of its block"
            )
        if len(message.blocks) != implementation.blocks:
            raise ArtifactError(
                f"{where}: operation '{message.type}' with {len(message.blocks)} blocks is not "
                f"implemented; {implementation.blocks} are expected"
            )
        bound = {
            name: tuple(self._argument(a, f"{where}, '{name}'") for a in argument.arguments)
            for name, argument in message.inputs.items()
        }
        constants = {
            name: tuple(self._constants[slot] for slot in slots)
            for name, slots in bound.items()
            if all(slot in self._constants for slot in slots)
        }
        weights = {
            name: self._slots[slots[0]]
            for name, slots in bound.items()
            if len(slots) == 1 and name not in constants and self._slots[slots[0]] is not None
        }
        for name, value in message.attributes.items():
            if name != "name":
                what = f"{where}, '{name}'"
                constants[name] = (read_constant(value, self._scope.package, what),)
        given = frozenset({*bound, *constants})
        opset, policy = self._scope.opset, self._scope.policy
        operation = Operation(
            message.type,
            where,
            outputs,
            constants,
            weights,
            given,
            opset,
            policy,
            self._scope.max_elements,
        )
        check_known(operation)
        return operation, bound

    def _argument(self, binding: MIL_pb2.Argument.Binding, where: str) -> int:
        if binding.WhichOneof("binding") == "name":
            return self._lookup(binding.name, where)
        constant = read_constant(binding.value, self._scope.package, where)
        slot = self._add(constant.type)
        self._constants[slot] = constant
        return slot

    def _step(
        self,
        operation: Operation,
        bound: Mapping[str, tuple[int, ...]],
        blocks: Sequence[MIL_pb2.Block],
    ) -> tuple[Run, tuple[int, ...]]:
        """Return the function that each execution calls, and the slots that it reads."""
        implementation = IMPLEMENTATIONS[operation.type]
        for name in implementation.inputs:
            kinds = implementation.types.get(name, TensorType)
            for slot in bound.get(name, ()):
                if not isinstance(self._types[slot], kinds):
                    what = type(self._types[slot]).__name__
                    raise operation.error(f"parameter '{name}' cannot be a {what}")
        reads = tuple(
            self._tensor(slot, packed=name in implementation.packed)
            for name in implementation.inputs
            for slot in bound.get(name, (-1,))
        )
        computed = {
            name: self._types[bound[name][0]]
            for name in implementation.computed
            if name in bound and name not in operation.constants
        }
        if computed:
            run = built_at_call(operation, computed)
            return run, reads + tuple(self._tensor(bound[name][0]) for name in computed)
        run = built(operation)
        if not blocks:
            return run, reads
        compilers = [Compiler(self._scope, self) for _ in blocks]
        plans = [c.compile(b.inputs, b) for c, b in zip(compilers, blocks, strict=True)]
        captured = [tuple(outer for _, outer in plan.captures) for plan in plans]
        nested = with_blocks(run, [Block(plan) for plan in plans], [len(c) for c in captured])
        return nested, reads + tuple(slot for slots in captured for slot in slots)

    def _tensor(self, slot: int, packed: bool = False) -> int:
        """Return the slot of a value that is read as a tensor; make the tensor of a constant.

        A packed weight that cannot be read packed is expanded to another slot.
        """
        if slot < 0:
            return slot
        if slot in self._constants and self._slots[slot] is None:
            constant = self._constants[slot]
            if constant.type.dtype.name == "STRING":
                raise ArtifactError(f"{self._where}: a STRING is used as a tensor")
            self._slots[slot] = self._scope.shared.constant(constant, self._scope.policy)
        if isinstance(self._slots[slot], PackedWeight) and not packed:
            value = self._slots[slot].tensor
            slot = self._add(self._types[slot])
            self._slots[slot] = value
        return slot
