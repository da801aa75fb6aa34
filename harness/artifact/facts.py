"""Facts about an artifact, as plain values: `harness inspect` shows them, checks compare them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.artifact import Artifact
from harness.artifact.delegate import BACKEND
from harness.artifact.files import sha256
from harness.artifact.operands import weights_in_program
from harness.artifact.package import Package
from harness.artifact.plan import ActivationPeak, activation_peak
from harness.artifact.proto import declared_shape, mil_types
from harness.artifact.pte import DelegateCall, KernelCall, TensorValue

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Value, ValueType


@dataclass(frozen=True)
class Tensor:
    """A named input or output; None in its shape marks a flexible dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class FunctionFacts:
    """A function of an ML Program; `weight_bytes` counts each of its weights once."""

    name: str
    opset: str
    inputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operations: dict[str, int]
    weight_bytes: int
    activations: ActivationPeak


@dataclass(frozen=True)
class Sharing:
    """How the functions of a package share weights, in bytes of weight data.

    `used` counts a weight once for each function that refers to it; `stored` counts each weight
    once; `shared` counts the weights that all functions refer to.
    """

    used: int
    stored: int
    shared: int


@dataclass(frozen=True)
class Storage:
    """How an artifact stores its weights, in bytes of weight data.

    `used` counts a weight once for each function that uses it; `stored` counts each place once, in
    a weight file or a program. Sharing saves the difference, `saved`. It could save `repeated`,
    the places whose content is in an earlier one, too. `in_programs` are the stored weights that
    belong in weight files, `uncalled` those that only functions use that no method calls, and
    `unreferenced` the bytes of packages, segments and named data that nothing refers to.
    """

    used: int
    stored: int
    saved: int
    repeated: int
    in_programs: int
    uncalled: int
    unreferenced: int


@dataclass(frozen=True)
class PackageFacts:
    """A Core ML package."""

    name: str
    identifier: str | None
    size: int
    specification_version: int
    multifunction: bool
    functions: tuple[FunctionFacts, ...]
    sharing: Sharing


@dataclass(frozen=True)
class DelegateFacts:
    """A Core ML delegate of a method; `package` is an index into the artifact's packages."""

    index: int
    package: int
    function: str | None
    payload_bytes: int


@dataclass(frozen=True)
class MethodFacts:
    """A method of a program."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    delegates: tuple[DelegateFacts, ...]
    delegate_calls: int
    kernel_calls: dict[str, int]


@dataclass(frozen=True)
class ArtifactFacts:
    """A whole artifact."""

    path: str
    kind: str
    size: int
    methods: tuple[MethodFacts, ...]
    packages: tuple[PackageFacts, ...]
    constants: dict[str, Any]
    weights: Storage

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)


def artifact_facts(artifact: Artifact) -> ArtifactFacts:
    """Return everything that `harness inspect` shows; raises ArtifactError for a damaged part."""
    if artifact.package is not None:
        facts = package_facts(artifact.package, None)
        path, weights = str(artifact.path), storage(artifact)
        return ArtifactFacts(path, artifact.kind, facts.size, (), (facts,), {}, weights)
    assert artifact.pte is not None
    bundles = artifact.bundles
    return ArtifactFacts(
        path=str(artifact.path),
        kind=artifact.kind,
        size=artifact.pte.size,
        methods=tuple(method_facts(artifact, name) for name in artifact.methods),
        packages=tuple(package_facts(b.package, b.metadata.identifier) for b in bundles),
        constants={name: _plain(value) for name, value in artifact.constants.items()},
        weights=storage(artifact),
    )


def method_facts(artifact: Artifact, name: str) -> MethodFacts:
    """Return the facts of one method of a program."""
    assert artifact.pte is not None
    method, bundles = artifact.pte.methods[name], artifact.bundle_numbers
    delegates = artifact.delegates[name]
    names = artifact.value_names(name)

    def tensor(index: int) -> Tensor:
        value = method.values[index]
        if isinstance(value, TensorValue):
            return Tensor(names.get(index, f"value_{index}"), value.dtype, value.shape)
        return Tensor(f"value_{index}", type(value).__name__, ())

    kernels = Counter(c.operator for c in method.instructions if isinstance(c, KernelCall))
    return MethodFacts(
        name=name,
        inputs=tuple(tensor(index) for index in method.inputs),
        outputs=tuple(tensor(index) for index in method.outputs),
        delegates=tuple(
            DelegateFacts(d.index, bundles[d.bundle], d.function, len(d.payload)) for d in delegates
        ),
        delegate_calls=sum(isinstance(c, DelegateCall) for c in method.instructions),
        kernel_calls=dict(kernels.most_common()),
    )


def package_facts(package: Package, identifier: str | None) -> PackageFacts:
    """Return the facts of one package."""
    return PackageFacts(
        name=package.what,
        identifier=identifier,
        size=package.size,
        specification_version=package.model.specificationVersion,
        multifunction=package.is_multifunction,
        functions=tuple(_function_facts(package, name) for name in sorted(package.functions)),
        sharing=sharing(package),
    )


def _function_facts(package: Package, name: str) -> FunctionFacts:
    block, function = package.operations(name), package.functions[name]
    declared = {v.name: v.type for v in function.inputs}
    produced = declared | {o.name: o.type for op in block.operations for o in op.outputs}
    operations = Counter(op.type for op in block.operations)
    states = package.states(name)
    stateful = frozenset(states)
    return FunctionFacts(
        name=name,
        opset=function.opset,
        inputs=tuple(_tensor(n, t) for n, t in declared.items() if n not in stateful),
        states=tuple(_tensor(n, declared[n].stateType.wrappedType) for n in states),
        outputs=tuple(_tensor(n, produced.get(n)) for n in block.outputs),
        operations=dict(operations.most_common()),
        weight_bytes=sum(len(package.blob(*ref).data) for ref in package.weights(name)),
        activations=activation_peak(function, block),
    )


def _tensor(name: str, value_type: ValueType | None) -> Tensor:
    if value_type is None or value_type.WhichOneof("type") != "tensorType":
        return Tensor(name, "unknown", ())
    tensor = value_type.tensorType
    dtype = mil_types().get(tensor.dataType)
    return Tensor(name, dtype.name if dtype else "unknown", declared_shape(tensor))


def sharing(package: Package) -> Sharing:
    """Return how the functions of a package share their weights; this reads no weight data."""
    used = {name: package.weights(name) for name in package.functions}
    blobs = {ref: package.blob(*ref) for refs in used.values() for ref in refs}
    common = frozenset[tuple[str, int]]().union(*used.values()).intersection(*used.values())
    return Sharing(
        used=sum(len(blobs[ref].data) for refs in used.values() for ref in refs),
        stored=sum(len(blob.data) for blob in blobs.values()),
        shared=sum(len(blobs[ref].data) for ref in common),
    )


def weights_by_users(package: Package) -> dict[tuple[str, ...], int]:
    """Return the bytes of a package's weights by the functions that use them, sorted by name.

    This reads no weight data.
    """
    users = defaultdict[tuple[str, int], list[str]](list)
    for name in sorted(package.functions):
        for reference in package.weights(name):
            users[reference].append(name)
    sizes = Counter[tuple[str, ...]]()
    for reference, names in users.items():
        sizes[tuple(names)] += len(package.blob(*reference).data)
    return dict(sizes)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        small = value.tolist() if value.size <= 256 else None
        return {"dtype": str(value.dtype), "shape": list(value.shape), "values": small}
    return value


def duplicate_bytes(package: Package) -> int:
    """Return the bytes of weights that repeat another weight of the package and could share it."""
    references = {one for name in package.functions for one in package.weights(name)}
    return _repeated(_Place(package, len(package.blob(*one).data), one) for one in references)


def _repeated(places: Iterable[_Place]) -> int:
    """Return the bytes of weights whose content is in an earlier place."""
    found = list(places)
    return sum(place.size for place in found) - sum({p.digest(): p.size for p in found}.values())


class _Place(NamedTuple):
    """A weight in a weight file, by its reference, or in a function's program, by its value."""

    package: Package
    size: int
    reference: tuple[str, int] | None = None
    value: Value | None = None

    def digest(self) -> bytes:
        """Return what places of one dtype and content have in common."""
        if self.reference is not None:
            return self.package.digest(*self.reference)
        assert self.value is not None
        dtype = mil_types()[self.value.type.tensorType.dataType]
        tensor = self.value.immediateValue.tensor
        match tensor.WhichOneof("value"):
            case "bytes":
                data = tensor.bytes.values
            case "floats":
                data = np.array(tensor.floats.values, "<f4").tobytes()
            case "ints":
                data = np.array(tensor.ints.values, "<i4").tobytes()
            case _:
                data = tensor.SerializeToString(deterministic=True)
        return dtype.name.encode() + bytes(1) + sha256(memoryview(data))


def _places(package: Package, function: str) -> Iterator[tuple[tuple[object, ...], _Place]]:
    """Yield each place of a weight that a function uses, with a key that no other place has."""
    for reference in sorted(package.weights(function)):
        size = len(package.blob(*reference).data)
        yield (package, reference), _Place(package, size, reference)
    for number, (_, value, size) in enumerate(weights_in_program(package, function)):
        yield (package, function, number), _Place(package, size, value=value)


def storage(artifact: Artifact) -> Storage:
    """Return how an artifact stores its weights; this reads all of them once."""
    called = {
        (delegate.bundle.package, delegate.program_function)
        for delegates in artifact.delegates.values()
        for delegate in delegates
    }
    places: dict[tuple[object, ...], _Place] = {}
    live, used = set[tuple[object, ...]](), 0
    for package in artifact.packages:
        for function in package.functions:
            for key, place in _places(package, function):
                places[key] = place
                used += place.size
                if artifact.pte is None or (package, function) in called:
                    live.add(key)
    stored = sum(place.size for place in places.values())
    return Storage(
        used=used,
        stored=stored,
        saved=used - stored,
        repeated=_repeated(places.values()),
        in_programs=sum(place.size for place in places.values() if place.value is not None),
        uncalled=sum(place.size for key, place in places.items() if key not in live),
        unreferenced=_unreferenced(artifact),
    )


def _unreferenced(artifact: Artifact) -> int:
    """Return the bytes to which nothing in a program refers."""
    if artifact.pte is None:
        return 0
    delegates = [d for method in artifact.pte.methods.values() for d in method.delegates]
    size = sum(artifact.pte.unused.values())
    if all(delegate.backend == BACKEND for delegate in delegates):  # others may use named data
        used = {d.reference.key for ds in artifact.delegates.values() for d in ds if d.reference}
        size += sum(len(data) for key, data in artifact.pte.named_data.items() if key not in used)
    return size
