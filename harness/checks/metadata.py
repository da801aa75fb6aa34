"""Checks that references, descriptions and `metadata.json` agree with the functions.

The delegate passes arguments in the order of the names in `metadata.json`: if the function has
another order, the answer is wrong without an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.artifact import Bundle, Delegate, Package, parse_metadata
from harness.artifact.blob import ENTRY_SIZE, HEADER_SIZE
from harness.artifact.package import core_ml_shape
from harness.artifact.proto import feature_types
from harness.artifact.pte import DelegateCall, TensorValue
from harness.artifact.specification import (
    description_problems,
    model_description_problems,
    version_problems,
)
from harness.checks.containers import findings_at, readable
from harness.checks.run import check
from harness.errors import ArtifactError
from harness.mil.types import allowed_shape
from harness.results import Finding
from harness.subject import Subject
from harness.text import listed

_CONVERTED = {("int64", "int32"), ("bool", "int32")}  # (program, Core ML): the delegate converts
# A partitioner that computes in fp16 leaves the values between delegates as the model has them.
_CONVERTED_OUTPUTS = _CONVERTED | {("float32", "float16")}


@check("references")
def check_references(subject: Subject) -> Iterator[Finding]:
    """Check that every reference resolves, and that no weight is unused."""
    for delegates in subject.artifact.delegates.values():  # raises when a key does not resolve
        for delegate in delegates:
            ok = delegate.program_function in delegate.bundle.package.functions
            message = f"function '{delegate.program_function}' is not in its package"
            yield Finding("references", _place(subject, delegate), ok, message, 1, code="A02")
    if (pte := subject.artifact.pte) is not None:
        yield Finding("references", "the file", facts={"pte bytes": pte.size})
        drafts = sum(
            delegate.reference is not None and delegate.reference.is_draft
            for delegates in subject.artifact.delegates.values()
            for delegate in delegates
        )
        if drafts:
            facts = {"references of the draft dialect, which no release reads": drafts}
            yield Finding("references", "the file's references", facts=facts)
    for number, package in enumerate(subject.artifact.packages):
        unused = _unused_weight_bytes(package)
        yield Finding(
            "references",
            f"package {number}",
            ok=unused < ENTRY_SIZE,  # less than one weight
            message=f"its weight files hold {unused} bytes that no function refers to",
            comparisons=1,
            code="S02",
        )


def _place(subject: Subject, delegate: Delegate) -> str:
    """Return the place of a delegate, with its package and its function."""
    number = subject.artifact.bundle_numbers[delegate.bundle]
    return f"{delegate.where}, package {number}, function '{delegate.program_function}'"


def _unused_weight_bytes(package: Package) -> int:
    """Return the bytes of the weight files that no function refers to, apart from padding."""
    references = {r for name in package.functions for r in package.weights(name)}
    used = [ENTRY_SIZE + len(package.blob(*reference).data) for reference in references]
    used += [HEADER_SIZE for _ in {file for file, _ in references}]
    stored = sum(len(package.files[name]) for name in package.files if name.endswith(".bin"))
    return stored - sum(size + -size % ENTRY_SIZE for size in used)


def program(subject: Subject) -> str | None:
    """Return why a bare package is skipped, or None."""
    return None if subject.artifact.pte else "a bare package has no program and no metadata.json"


@check("metadata-round-trip", needs=(program,))
def check_metadata_round_trip(subject: Subject) -> Iterator[Finding]:
    """Check that parsing and writing every payload's metadata returns the same bytes.

    The same is checked for the draft dialect, which is made of the payload.
    """
    for number, bundle in enumerate(subject.artifact.bundles):
        data = bytes(bundle.metadata_bytes)
        dialects = [("as stored", data)]
        if bundle.metadata.is_multifunction:
            dialects.append(("in the draft dialect", _draft(bundle)))
        for name, content in dialects:
            written = parse_metadata(content, bundle.what).to_bytes()
            yield Finding(
                "metadata-round-trip",
                f"package {number}, {name}",
                ok=written == content,
                message=f"parsing and writing it again changes {content!r} to {written!r}",
                comparisons=1,
                code="M01",
            )


def _draft(bundle: Bundle) -> bytes:
    """Return the bundle's metadata in the draft dialect, which has a default method."""
    methods = bundle.metadata.methods or {}
    return replace(bundle.metadata, default_method=next(iter(methods))).to_bytes()


@check("function-names")
def check_function_names(subject: Subject) -> Iterator[Finding]:
    """Check that multifunction artifacts, and no others, ask Core ML for a function by name.

    Core ML loads a package of one function without a name, a multifunction package with one.
    """
    yield from _check_default_functions(subject)
    for delegates in subject.artifact.delegates.values():
        for delegate in delegates:
            package, function = delegate.bundle.package, delegate.function
            is_single = subject.is_language_model and subject.mode == "single"
            if is_single or not package.is_multifunction:
                ok = function is None and not package.is_multifunction
                wanted = "no function name and a package of one function"
            else:
                ok = function == delegate.method and function in package.functions
                wanted = f"function '{delegate.method}' of a multifunction package"
            found = f"function '{function}'" if function else "no function name"
            kind = "multifunction" if package.is_multifunction else "single-function"
            yield Finding(
                "function-names",
                _place(subject, delegate),
                ok=ok,
                message=f"needs {wanted}; it has {found}, and the package is {kind} with "
                f"{listed(sorted(package.functions))}",
                comparisons=1,
                code="A03",
            )


def _check_default_functions(subject: Subject) -> Iterator[Finding]:
    """Check that every package has the same default function, and contains it.

    Tools that open a package without naming a function run its default; partitions with different
    defaults do not belong together.
    """
    artifact = subject.artifact
    wishes = [bundle.metadata.default_method for bundle in artifact.bundles] or [None]
    defaults = [package.default_function for package in artifact.packages]
    for number, (package, wish) in enumerate(zip(artifact.packages, wishes, strict=True)):
        wanted, default = wish or defaults[0], defaults[number]
        own = package.functions
        expected = f"'{wanted}'" if wanted in own else f"one of {', '.join(sorted(own))}"
        yield Finding(
            "function-names",
            f"package {number}",
            ok=default == wanted and default in own,
            message=f"its default function is '{default}'; {expected} is expected",
            comparisons=1,
            code="A04",
        )


@check("descriptions", needs=(readable,))
def check_descriptions(subject: Subject) -> Iterator[Finding]:
    """Check specification versions, and the description of each function against the function.

    The rules are in `harness.artifact.specification`.
    """
    artifact = subject.artifact
    for number, package in enumerate(artifact.packages):
        where = f"package {number}"
        yield from findings_at(where, version_problems(package), "A40")
        if artifact.package is None:  # `metadata-names` judges that of a bare package
            yield from findings_at(where, model_description_problems(package), "A41")
        for name in sorted(package.functions):
            if subject.is_language_model and package.states(name):
                continue  # `program` reports states
            place, count = f"{where}, function '{name}'", len(package.functions[name].inputs)
            yield from findings_at(place, description_problems(package, name), "A42", count)
            if artifact.package is None:
                lacking = _of_delegates(artifact.bundles[number], name)
                yield from findings_at(place, lacking, "A43", 0)


def _of_delegates(bundle: Bundle, function: str) -> Iterator[tuple[str, str]]:
    """Yield what a delegate needs beyond a package: names as described, no optional inputs.

    A delegate passes every argument by its name in `metadata.json` (`ETCoreMLModel.mm`), which
    `metadata-names` compares with the description.
    """
    package, metadata = bundle.package, bundle.metadata
    description = package.described(function)
    passed = metadata.single or (metadata.methods or {}).get(function)
    if passed is None or list(passed.input_names) != [f.name for f in description.input]:
        return
    own = {value.name for value in package.functions[function].inputs}
    taken = {feature.name for feature in (*description.input, *description.state)}
    made = {feature.name for feature in description.output}
    for what, names, held in (
        ("inputs", taken, own),
        ("outputs", made, set(package.operations(function).outputs)),
    ):
        for name in sorted(names - held):
            yield f"'{name}'", f"is described, but is none of the function's {what}"
        for name in sorted(held - names):
            yield f"'{name}'", f"is one of the function's {what}, but is not described"
    for feature in description.input:
        if feature.type.isOptional:
            yield f"input '{feature.name}'", "is optional, but a delegate always passes it"


@check("metadata-names")
def check_metadata_names(subject: Subject) -> Iterator[Finding]:
    """Check that metadata, function and program agree in names, order, shapes and dtypes."""
    for name, delegates in subject.artifact.delegates.items():
        passed = _passed_values(subject, name)
        for delegate in delegates:
            if delegate.index not in passed:
                raise ArtifactError(f"{delegate.where}: no instruction calls it")
            yield from _check_delegate(subject, delegate, passed[delegate.index])
    if subject.artifact.package is not None:
        yield from _check_package(subject.artifact.package)
    for number, bundle in enumerate(subject.artifact.bundles):
        if bundle.metadata.methods is not None:
            named, own = set(bundle.metadata.methods), set(bundle.package.functions)
            yield Finding(
                "metadata-names",
                f"package {number}",
                ok=named == own,
                message=f"metadata.json describes {sorted(named)}, the package holds {sorted(own)}",
                comparisons=len(named | own),
                code="M04",
            )


def _check_package(package: Package) -> Iterator[Finding]:
    """Check that the description of each function names what the function has, in its order."""
    for name in sorted(package.functions):
        description, states = package.description(name), package.states(name)
        own_states = frozenset(states)
        inputs = [i.name for i in package.functions[name].inputs if i.name not in own_states]
        for kind, features, own in (
            ("inputs", description.input, inputs),
            ("outputs", description.output, list(package.operations(name).outputs)),
            ("states", description.state, list(states)),
        ):
            named = [feature.name for feature in features]
            yield Finding(
                "metadata-names",
                f"function '{name}', {kind}",
                ok=named == own,
                message=f"the description's order is {named}, the function's is {own}",
                comparisons=max(len(named), len(own)),
                code="A05",
            )


def _check_delegate(
    subject: Subject, delegate: Delegate, values: Sequence[object]
) -> Iterator[Finding]:
    """Check a delegate that is first called with values of these declarations."""
    package = delegate.bundle.package
    description = package.described(delegate.program_function)
    names = delegate.names
    split = len(names.input_names)
    for kind, named, declared, passed in (
        ("input", names.input_names, description.input, values[:split]),
        ("output", names.output_names, description.output, values[split:]),
    ):
        where = _place(subject, delegate)
        own = tuple(feature.name for feature in declared)
        yield Finding(
            "metadata-names",
            f"{where}, {kind}s",
            ok=named == own,
            message=f"metadata.json's order is {list(named)}, the function's is {list(own)}",
            comparisons=len(own),
            code="M02",
        )
        features = {feature.name: feature for feature in declared}
        for name, value in zip(named, passed, strict=False):
            # A language model's own values are in the artifact's dtype.
            free = kind == "output" and not subject.is_language_model
            problem = _misfit(value, features.get(name), _CONVERTED_OUTPUTS if free else _CONVERTED)
            if problem:
                place = f"{where}, {kind} '{name}'"
                yield Finding("metadata-names", place, False, problem, 1, code="M03")


def _passed_values(subject: Subject, name: str) -> dict[int, tuple[object, ...]]:
    """Return the declarations of the values that each delegate of a method is first called with."""
    assert subject.artifact.pte is not None
    method = subject.artifact.pte.methods[name]
    passed: dict[int, tuple[object, ...]] = {}
    for call in method.instructions:
        if isinstance(call, DelegateCall) and call.delegate not in passed:
            passed[call.delegate] = tuple(method.values[index] for index in call.args)
    return passed


def _misfit(value: object, feature: Any, converted: set[tuple[str, str]]) -> str:
    """Describe how a program's value and a Core ML feature differ; "" when they fit."""
    if feature is None:
        return "the function has no feature of this name"
    if not isinstance(value, TensorValue):
        return f"the program passes {type(value).__name__}; only tensors can be passed"
    array = feature.type.multiArrayType
    dtype = feature_types().get(array.dataType, f"type {array.dataType}")
    shape = tuple(array.shape)
    flexible = allowed_shape(array)
    if flexible is not None and not flexible.allow(value.shape):
        return f"the program passes shape {list(value.shape)}, the function takes {flexible}"
    # a description may omit an output's shape
    if flexible is None and shape and core_ml_shape(value.shape) != shape:
        return f"the program passes shape {list(value.shape)}, the function takes {list(shape)}"
    if value.dtype != dtype and (value.dtype, dtype) not in converted:
        return f"the program passes {value.dtype}, the function takes {dtype}"
    return ""
