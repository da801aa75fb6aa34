"""Checks of what no execution shows around a program: files, compile specs, memory, calls.

All of them read bytes only; the rules of the formats are in `harness.artifact`. Core ML and
ExecuTorch refuse some of these artifacts when they load them, others only on some systems. An
artifact too damaged for a rule, which `references` and `metadata-names` report, is skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.artifact.blob import file_problems
from harness.artifact.plan import call_problems, key_problems, overlap_problems, tensor_problems
from harness.artifact.pte import DelegateCall, TensorValue
from harness.artifact.specification import SYSTEMS, manifest_problems, version_problems
from harness.checks.findings import rows
from harness.checks.run import check
from harness.errors import ArtifactError
from harness.results import Finding
from harness.subject import Subject

if TYPE_CHECKING:
    from harness.artifact import Bundle, Delegate
    from harness.artifact.pte import DelegateData, PteMethod

_UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")
_STRATEGY = "multimethod_weight_sharing_strategy"
_IN_JSON = ("op_linear_quantizer_config", "enumerated_shapes", "pass_pipeline")
_KNOWN_VALUES = {
    "compute_units": _UNITS,
    "model_type": ("model", "compiled_model"),
    "min_deployment_target": ("", *map(str, SYSTEMS)),
    "model_compute_precision": ("float16", "float32"),
    _STRATEGY: ("positional", "disabled"),
}


def readable(subject: Subject) -> str | None:
    """Return why an artifact that is too damaged for rules of validity is skipped, or None."""
    artifact = subject.artifact
    try:
        for delegates in artifact.delegates.values():
            for delegate in delegates:
                _ = delegate.names
        for package in artifact.packages:
            for name in package.functions:
                _ = package.operations(name)
                for reference in package.weights(name):
                    package.blob(*reference)
    except ArtifactError as error:
        return f"other checks report that it is damaged: {error}"
    return None


def pte(subject: Subject) -> str | None:
    """Return why an artifact that is not a `.pte` is skipped, or None."""
    return None if subject.artifact.kind == "pte" else "only a .pte has a memory plan and delegates"


def model_dtype(subject: Subject) -> str | None:
    """Return the dtype of a language model's RoPE tables, None for another model."""
    if not subject.is_language_model:
        return None
    return str(getattr(subject.artifact.constants.get("freqs_cos"), "dtype", "")) or None


def findings_at(
    where: str, problems: Iterable[tuple[str, str] | str], code: str, comparisons: int = 1
) -> Iterator[Finding]:
    """Yield a finding of each problem at a place, and one that counts the comparisons there."""
    check = rows()[code].check
    yield Finding(check, where, comparisons=comparisons)
    for one in problems:
        place, text = ("", one) if isinstance(one, str) else one
        yield Finding(check, f"{where}: {place}" if place else where, False, text, code=code)


@check("package-files", needs=(readable,))
def check_package_files(subject: Subject) -> Iterator[Finding]:
    """Check manifests, weight files and identifiers.

    ExecuTorch's runtime caches a compiled model under the identifier of `metadata.json`
    (`ETCoreMLAssetManager.mm`): of two packages with one identifier, it would load one twice.
    """
    for number, package in enumerate(subject.artifact.packages):
        where = f"package {number}"
        problems = manifest_problems(package.files)
        yield from findings_at(f"{where}, Manifest.json", problems, "A10", len(package.files))
        for name in package.files:
            if name.endswith(".bin"):
                problems = file_problems(package.files[name])
                yield from findings_at(f"{where}, {name}", problems, "A11")
    owners: dict[str, int] = {}
    for number, bundle in enumerate(subject.artifact.bundles):
        identifier = bundle.metadata.identifier
        other = owners.setdefault(identifier, number)
        problem = []
        if not identifier.strip():
            problem = ["its identifier is empty; the runtime caches a compiled model under it"]
        elif other != number and not _same(bundle, subject.artifact.bundles[other]):
            problem = [f"has the identifier of package {other}, '{identifier}'; draw another"]
        yield from findings_at(f"package {number}, metadata.json", problem, "A12")


def _same(bundle: Bundle, other: Bundle) -> bool:
    """Return whether two payloads hold the same files."""
    files, others = bundle.files, other.files
    return files.keys() == others.keys() and all(files[name] == others[name] for name in files)


def compile_specs(subject: Subject) -> str | None:
    """Return why a `.pte` whose delegates carry no compile specs is skipped, or None."""
    assert subject.artifact.pte is not None
    methods = subject.artifact.pte.methods.values()
    held = any(delegate.compile_specs for method in methods for delegate in method.delegates)
    return None if held else "no delegate carries compile specs"


@check("compile-specs", needs=(readable, pte, compile_specs))
def check_compile_specs(subject: Subject) -> Iterator[Finding]:
    """Check the compile specs of delegates: known, true of the packages, equal.

    Source: `COMPILE_SPEC_KEYS` in ExecuTorch's `coreml_preprocess.py`, where the specification
    version of a package is the deployment target, or iOS 18's for several functions.
    """
    artifact = subject.artifact
    assert artifact.pte is not None
    firsts: dict[str, tuple[Delegate, DelegateData]] = {}
    several = sum(bool(delegates) for delegates in artifact.delegates.values()) > 1
    for method, delegates in artifact.delegates.items():
        scope = "" if subject.is_language_model else method  # one partitioner lowers such a model
        for delegate in delegates:
            data = artifact.pte.methods[method].delegates[delegate.index]
            first, other = firsts.setdefault(scope, (delegate, data))
            values = list(_spec_values(data))
            yield from findings_at(delegate.where, values, "A20", len(data.compile_specs))
            facts = list(_spec_facts(subject, delegate, data, several))
            yield from findings_at(delegate.where, facts, "A21", 0)
            changed = sorted(dict({*data.compile_specs} ^ {*other.compile_specs}))
            if changed and not values and not facts:
                text = f"{', '.join(changed)} differs from that of {first.where}"
                yield Finding("compile-specs", delegate.where, False, text, code="A22")


def _spec_values(data: DelegateData) -> Iterator[str]:
    for key, count in Counter(key for key, _ in data.compile_specs).items():
        if count > 1:
            yield f"{key} is given {count} times"
    for key, value in data.compile_specs:
        if key in _IN_JSON and not _is_json(value):
            yield f"{key} is not JSON: {value[:40]!r}"
        known = _KNOWN_VALUES.get(key)
        if known is not None and value.decode(errors="replace") not in known:
            yield f"{key} is {value[:40]!r}; known are {', '.join(map(repr, known))}"


def _is_json(value: bytes) -> bool:
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def _spec_facts(
    subject: Subject, delegate: Delegate, data: DelegateData, several: bool
) -> Iterator[str]:
    """Yield the compile specs that are not true of the delegate's package."""
    specs = {key: value.decode(errors="replace") for key, value in data.compile_specs}
    package = delegate.bundle.package
    version = package.model.specificationVersion
    target = specs.get("min_deployment_target", "")
    if target in map(str, SYSTEMS) and not any(version_problems(package)):
        wanted = max(int(target), 9) if package.is_multifunction else int(target)
        if version != wanted:
            yield (
                f"min_deployment_target is {target} ({SYSTEMS[int(target)]}), but the package has "
                f"specification version {version} ({SYSTEMS[version]})"
            )
    if specs.get("model_type") == "compiled_model":
        yield "model_type is compiled_model, but the payload holds a model.mlpackage"
    precision, dtype = specs.get("model_compute_precision"), model_dtype(subject)
    if dtype and precision in ("float16", "float32") and precision != dtype:
        yield f"model_compute_precision is {precision}, but the model is {dtype}"
    strategy = specs.get(_STRATEGY)
    lost = several and not subject.is_language_model  # of those, `weight-sharing` reports it
    if lost and strategy == "positional" and delegate.reference is None:
        yield f"{_STRATEGY} is positional, but the delegate has a package of its own"
    if strategy == "disabled" and delegate.reference is not None:
        yield f"{_STRATEGY} is disabled, but the delegate refers to a shared package"


@check("memory-plan", needs=(readable, pte))
def check_memory_plan(subject: Subject) -> Iterator[Finding]:
    """Check the tensors of a `.pte`, their memory, the order of calls and the keys of its data."""
    artifact = subject.artifact
    assert artifact.pte is not None
    if artifact.pte.keys:
        problems = key_problems(artifact.pte)
        yield from findings_at("named data", problems, "A30", len(artifact.pte.keys))
    for name, delegates in artifact.delegates.items():
        method, names = artifact.pte.methods[name], artifact.value_names(name)
        where = f"method '{name}'"
        yield from findings_at(where, tensor_problems(method), "A31", len(method.values))
        yield from findings_at(where, overlap_problems(method, names), "A32", 0)
        if _takes_arguments(method, delegates):
            inputs_of = {d.index: len(d.names.input_names) for d in delegates}
            yield from findings_at(where, call_problems(method, inputs_of, names), "A33", 0)
        if subject.is_language_model:
            yield from findings_at(where, _unusual(subject, name), "A34", 0)


def _takes_arguments(method: PteMethod, delegates: Sequence[Delegate]) -> bool:
    """Return whether each call passes as many values as are named; `metadata-names` says if not."""
    counts = {d.index: len(d.names.input_names) + len(d.names.output_names) for d in delegates}
    steps = [step for step in method.instructions if isinstance(step, DelegateCall)]
    return all(len(step.args) == counts.get(step.delegate, len(step.args)) for step in steps)


def _unusual(subject: Subject, name: str) -> Iterator[tuple[str, str]]:
    """Yield what no language model of the static exporter has.

    Its tensors are contiguous and of one shape, and it calls each delegate once. Other models may
    have tensors of another memory format, or several shapes.
    """
    assert subject.artifact.pte is not None
    method, names = subject.artifact.pte.methods[name], subject.artifact.value_names(name)
    steps = [step for step in method.instructions if isinstance(step, DelegateCall)]
    for delegate, count in Counter(step.delegate for step in dict.fromkeys(steps)).items():
        if count > 1:
            yield f"delegate {delegate}", f"is called with {count} sets of values, not one"
    for index, text in names.items():
        value = method.values[index]
        if not isinstance(value, TensorValue):
            continue
        if list(value.dim_order) != sorted(value.dim_order):
            order = list(value.dim_order)
            yield f"'{text}'", f"its dim_order is {order}, so it is not contiguous"
        if value.resizable and not value.unbounded:
            yield f"'{text}'", "its shape is dynamic, but the function takes one shape"
