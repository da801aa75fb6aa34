"""Digests of what a function or a method computes: equal for equal computations.

The digest of a value covers the operation that makes it, its constants, the content of its weights,
and the digests of the values that it takes. Names, the order of emission, and the order of the two
operands of a sum do not count. The inputs of a function are known by their names, those of a
program's method by their numbers: equal digests of a method hold whatever its delegates' arguments
are called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from harness.artifact import Artifact
from harness.artifact.delegate import Delegate
from harness.artifact.package import Package
from harness.artifact.pte import DelegateCall, FreeCall, KernelCall, ListValue, TensorValue, Value
from harness.diff.functions import COMMUTATIVE, Reader
from harness.diff.steps import Parameter, Step

Digests = Mapping[str, str]
_EFFECTS = ""  # the name under which a function's digests have those of its states


def function_digests(
    reader: Reader, name: str, given: Digests = MappingProxyType({})
) -> dict[str, str]:
    """Return the digest of each output of a function by name, and of what it does to states.

    `given` are digests of inputs; an input without one is known by its name. Raises ArtifactError
    for a function or a weight that is not in the package.
    """
    *found, _ = reader.steps(name)
    inputs = [value.name for value in reader.package.functions[name].inputs]
    known = {name: given.get(name, digest("input", name)) for name in inputs}
    effects = ""
    for step in found:
        parts = _parameters(reader, name, step, known)
        made = digest(step.type, *parts, *step.types, effects if step.keeps_order else "")
        effects = made if step.keeps_order else effects
        known.update((out, digest(made, n)) for n, out in enumerate(step.outputs))
    outputs = reader.package.operations(name).outputs
    return {output: known.get(output, "") for output in outputs} | {_EFFECTS: effects}


def _parameters(reader: Reader, function: str, step: Step, known: Digests) -> list[str]:
    """Return a digest of each parameter; those of a commutative operation are sorted."""
    contents = iter(reader.weights(function, step))

    def one(parameter: Parameter, name: str) -> str:
        held = [next(contents).content for _ in parameter.weights]
        values = [known.get(value, "unknown") for value in parameter.values]
        return digest(name, parameter.text, *values, *held)

    if step.type in COMMUTATIVE:
        return sorted(one(parameter, "") for parameter in step.parameters)
    return [one(parameter, parameter.name) for parameter in step.parameters]


def method_digests(
    artifact: Artifact, method: str, readers: Mapping[Package, Reader]
) -> list[str] | None:
    """Return digests of a program's method: of its outputs, in order, and of each of its calls.

    None for a method with jumps. Raises ArtifactError for a part that is damaged.
    """
    assert artifact.pte is not None
    plan = artifact.pte.methods[method]
    delegates = {delegate.index: delegate for delegate in artifact.delegates[method]}
    known = {i: digest("input", n, _shape(plan.values[i])) for n, i in enumerate(plan.inputs)}
    calls: list[str] = []
    for call in plan.instructions:
        match call:
            case DelegateCall(index, args) if index in delegates:
                given = _called(delegates[index], args, plan.values, known, readers)
            case DelegateCall(index, args):
                other = plan.delegates[index]
                what = digest(other.backend, bytes(other.processed), other.compile_specs)
                given = _executed(what, args, plan.values, known)
            case KernelCall(operator, args):
                given = _executed(operator, args, plan.values, known)
            case FreeCall():
                continue
            case _:
                return None
        known |= given
        calls.append(digest(*given.values()))
    return [*(_value(plan.values, index, known) for index in plan.outputs), *sorted(calls)]


def _shape(value: Value) -> object:
    return (value.dtype, value.shape) if isinstance(value, TensorValue) else type(value).__name__


def _called(
    delegate: Delegate,
    args: Sequence[int],
    values: Sequence[Value],
    known: Mapping[int, str],
    readers: Mapping[Package, Reader],
) -> dict[int, str]:
    """Return the digests that a Core ML delegate's call gives; -1 is what it does to states."""
    names, package = delegate.names, delegate.bundle.package
    count = len(names.input_names)
    taken = [_value(values, arg, known) for arg in args[:count]]
    inputs = dict(zip(names.input_names, taken, strict=False))
    made = function_digests(readers[package], delegate.program_function, inputs)
    outputs = dict(zip(args[count:], names.output_names, strict=False))
    given = {arg: made.get(name, digest("no output", name)) for arg, name in outputs.items()}
    # The numbers of arguments count: names beyond them, or arguments beyond the names, are wrong.
    return given | {-1: digest(made[_EFFECTS], count, len(names.output_names), len(args))}


def _executed(
    what: str, args: Sequence[int], values: Sequence[Value], known: Mapping[int, str]
) -> dict[int, str]:
    """Return the digests after a call that may write to any tensor among its arguments."""
    taken = [_value(values, arg, known) for arg in args]
    return {
        arg: digest(what, *taken, number)
        for number, arg in enumerate(args)
        if isinstance(value := values[arg], TensorValue) and value.data is None
    }


def _value(values: Sequence[Value], index: int, known: Mapping[int, str]) -> str:
    """Return the digest of a method's value: one that was computed, or a constant."""
    if index in known:
        return known[index]
    match values[index] if 0 <= index < len(values) else None:
        case TensorValue() as tensor:
            content = tensor.data if tensor.data is not None else tensor.initial
            held = "" if content is None else bytes(content)
            return digest(tensor.dtype, tensor.shape, tensor.dim_order, held)
        case ListValue(items):
            return digest(*(_value(values, item, known) for item in items))
        case other:
            return digest(repr(other))


def digest(*parts: object) -> str:
    """Return a digest of parts, in order."""
    made = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()[:32]
