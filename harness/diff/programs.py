"""Compares two ExecuTorch programs, and each pair of their packages and functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from harness.artifact import Artifact
from harness.artifact.delegate import BACKEND, METADATA, PACKAGE, Bundle, Delegate
from harness.artifact.facts import MethodFacts, Tensor, method_facts, sharing
from harness.artifact.package import MANIFEST, Package
from harness.artifact.pte import DelegateCall, KernelCall, Pte
from harness.diff.difference import Difference, changed, reordered, same_files, without_random
from harness.diff.expressions import function_digests, method_digests
from harness.diff.functions import Reader, align, diff_operations, diff_weights
from harness.diff.steps import type_text

_MAX_SHOWN = 32  # values of a constant array; a larger one is shown by its digest
_METADATA = ("shortDescription", "versionString", "author", "license")
_FEATURES = ("input", "output", "state")
# Differences of these kinds, and of the names in a delegate, change nothing in equal computations;
# those of the second line only when one side lacks a name.
_OF_NAMES = ("names", "order", "program", "operation", "wiring", "weight")
_OF_NAMES_ALONE = ("input", "output", "description")
_OF_DELEGATES = ("input names", "output names")

_Readers = Mapping[Package, Reader]


def diff_programs(a: Artifact, b: Artifact) -> Iterator[Difference]:
    """Yield the differences between two programs."""
    yield from changed("", "method", *(dict.fromkeys(x.methods, "there") for x in (a, b)))
    yield from changed("", "option", _options(a.pte), _options(b.pte))
    yield from _diff_constants(a.constants, b.constants)
    yield from changed("", "named data", *map(_other_data, (a, b)))
    pairs: dict[tuple[Bundle, Bundle], Pair] = {}
    readers = {package: Reader(package) for x in (a, b) for package in x.packages}
    for name in a.methods:
        if name in b.methods:
            where = f"method '{name}'"
            digests = [method_digests(x, name, readers) for x in (a, b)]
            found = [
                *_diff_method(where, method_facts(a, name), method_facts(b, name)),
                *changed(where, "program", *(_calls(x.pte, name) for x in (a, b))),
                *_diff_delegates(a.delegates[name], b.delegates[name], pairs, readers),
            ]
            yield from _marked(found, digests[0] == digests[1] and digests[0] is not None)


def diff_packages(a: Package, b: Package) -> Iterator[Difference]:
    """Yield the differences between two packages."""
    readers = {package: Reader(package) for package in (a, b)}
    pair = Pair(a, b, readers)
    yield from pair.package("")
    for name in a.functions:
        if name in b.functions:
            yield from pair.function(f"function '{name}'", name, name)


def _marked(found: Iterable[Difference], is_same: bool) -> Iterator[Difference]:
    """Mark what only names, or an order, have changed in equal computations."""
    for one in found:
        is_name = is_same and (
            one.kind in _OF_NAMES
            or (one.kind in _OF_NAMES_ALONE and None in (one.a, one.b))
            or (one.kind == "delegate" and one.what in _OF_DELEGATES)
        )
        yield replace(one, is_name=True) if is_name else one


def _diff_method(where: str, a: MethodFacts, b: MethodFacts) -> Iterator[Difference]:
    for kind in ("inputs", "outputs"):
        ours, theirs = (getattr(method, kind) for method in (a, b))
        yield from changed(where, kind.removesuffix("s"), _by_name(ours), _by_name(theirs))
        names = [[tensor.name for tensor in tensors] for tensors in (ours, theirs)]
        yield from reordered(where, kind, *names)


def _by_name(tensors: tuple[Tensor, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for tensor in tensors:  # two may have one name
        text = f"{tensor.dtype}{list(tensor.shape)}"
        found[tensor.name] = f"{found[tensor.name]} & {text}" if tensor.name in found else text
    return found


def _calls(pte: Pte | None, method: str) -> dict[str, Any]:
    """Return a method's calls in order, with the indices of their values, and its delegates of
    other backends."""
    assert pte is not None
    texts = []
    for call in pte.methods[method].instructions:
        match call:
            case KernelCall(operator, args):
                texts.append(f"{operator}{list(args)}")
            case DelegateCall(delegate, args):
                texts.append(f"delegate {delegate}{list(args)}")
            case _:
                texts.append(str(call))
    others = {
        f"delegate {index}": f"{d.backend}, {len(d.processed):,} bytes, #{_digest(d.processed)}"
        for index, d in enumerate(pte.methods[method].delegates)
        if d.backend != BACKEND
    }
    return {"calls": texts, **others}


def _options(pte: Pte | None) -> dict[str, list[str]]:
    """Return the compile specs of all delegates: the values of each key."""
    assert pte is not None
    found: dict[str, set[str]] = {}
    for method in pte.methods.values():
        for delegate in method.delegates:
            for key, value in delegate.compile_specs:
                text = value.decode(errors="backslashreplace")
                found.setdefault(f"{delegate.backend} {key}", set()).add(text)
    return {key: sorted(values) for key, values in sorted(found.items())}


def _diff_delegates(
    a: tuple[Delegate, ...],
    b: tuple[Delegate, ...],
    pairs: dict[tuple[Bundle, Bundle], Pair],
    readers: _Readers,
) -> Iterator[Difference]:
    """Yield the differences between delegates of the same index, and between their packages."""
    indexed = [{delegate.index: delegate for delegate in found} for found in (a, b)]
    for index in dict.fromkeys([d.index for d in (*a, *b)]):
        ours, theirs = (found.get(index) for found in indexed)
        where = (ours or theirs or a[0]).where
        yield from changed(where, "delegate", *(_delegate(d) for d in (ours, theirs)))
        if ours and theirs:
            key = ours.bundle, theirs.bundle
            if key not in pairs:
                pairs[key] = Pair(ours.bundle.package, theirs.bundle.package, readers)
                yield from changed(where, "metadata.json", *map(_described, key))
                yield from changed(where, "file", *map(_other_files, key))
                yield from pairs[key].package(f"{where}, package")
            names = ours.program_function, theirs.program_function
            yield from pairs[key].function(f"{where}, function '{names[0]}'", *names)


def _delegate(delegate: Delegate | None) -> dict[str, Any]:
    """Return a delegate's payload and function, and the names by which it passes arguments."""
    if delegate is None:
        return {}
    reference = delegate.reference
    return {
        "payload": "a reference to named data" if reference else "a package of its own",
        "function": delegate.function,
        "key": reference.key if reference else None,
        "identifier": delegate.bundle.metadata.identifier,
        "default method": delegate.bundle.metadata.default_method,
        "input names": list(delegate.names.input_names),
        "output names": list(delegate.names.output_names),
    }


def _described(bundle: Bundle) -> dict[str, Any]:
    """Return what `metadata.json` describes apart from the names of the delegate's own method."""
    content: dict[str, Any] = json.loads(bytes(bundle.metadata_bytes))
    known = ("identifier", "inputNames", "outputNames", "default_method", "methods")
    others = {key: value for key, value in content.items() if key not in known}
    return {"methods": sorted(bundle.metadata.methods or ()), **others}


def _other_files(bundle: Bundle) -> dict[str, str]:
    """Return the digests of files beside the package and `metadata.json`."""
    return {
        name: _digest(data)
        for name, data in bundle.files.items()
        if name != METADATA and not name.startswith(f"{PACKAGE}/")
    }


def _other_data(artifact: Artifact) -> dict[str, str]:
    """Return the digests of named data to which no delegate refers."""
    assert artifact.pte is not None
    used = {d.reference.key for ds in artifact.delegates.values() for d in ds if d.reference}
    named = artifact.pte.named_data
    return {without_random(key): _digest(named[key]) for key in named if key not in used}


class Pair:
    """Two packages; however many methods refer to them, each pair of functions is compared once."""

    def __init__(self, a: Package, b: Package, readers: _Readers) -> None:
        self._packages = a, b
        self._readers = readers[a], readers[b]
        self._seen: set[tuple[str, str]] = set()
        self._same = same_files(a.files, b.files)

    def package(self, where: str) -> Iterator[Difference]:
        """Yield the differences between the packages as a whole."""
        if self._same:
            return
        yield from changed(where, "package", *map(_facts, self._packages))
        yield from changed(where, "metadata", *map(_metadata, self._packages))
        yield from changed(where, "file", *map(_files, self._packages))
        functions = [dict.fromkeys(p.functions, "there") for p in self._packages]
        yield from changed(where, "function", *functions)

    def function(self, where: str, a: str, b: str) -> Iterator[Difference]:
        """Yield the differences of two functions, unless these two were compared before."""
        if (self._same and a == b) or (a, b) in self._seen:
            return
        self._seen.add((a, b))
        readers = zip(self._readers, (a, b), strict=True)
        digests = [function_digests(reader, name) for reader, name in readers]
        yield from _marked(self._function(where, a, b), digests[0] == digests[1])

    def _function(self, where: str, a: str, b: str) -> Iterator[Difference]:
        packages, names = self._packages, (a, b)
        blocks = [p.operations(name) for p, name in zip(packages, names, strict=True)]
        functions = [p.functions[name] for p, name in zip(packages, names, strict=True)]
        yield from changed(where, "opset", *({"opset": f.opset} for f in functions))
        inputs = [{v.name: type_text(v.type) for v in f.inputs} for f in functions]
        yield from changed(where, "input", *inputs)
        yield from reordered(where, "inputs", *map(list, inputs))
        outputs = [dict.fromkeys(block.outputs, "there") for block in blocks]
        yield from changed(where, "output", *outputs)
        features = [_features(p, name) for p, name in zip(packages, names, strict=True)]
        yield from changed(where, "description", *features)
        ours, theirs = (r.steps(name) for r, name in zip(self._readers, names, strict=True))
        alignment = align(ours, theirs)
        yield from diff_operations(where, ours, theirs, alignment)
        taken = (partial(r.weights, n) for r, n in zip(self._readers, names, strict=True))
        yield from diff_weights(where, alignment, *taken)


def _facts(package: Package) -> dict[str, Any]:
    model = package.model
    shared = {f"weight bytes {key}": value for key, value in asdict(sharing(package)).items()}
    return {
        "specification version": model.specificationVersion,
        "default function": model.description.defaultFunctionName or None,
        "described functions": [entry.name for entry in model.description.functions],
        "size": package.size,
        **shared,
    }


def _metadata(package: Package) -> dict[str, str]:
    """Return the model's metadata, and the attributes of its program as text."""
    metadata, program = package.model.description.metadata, package.model.mlProgram
    fields = {field: getattr(metadata, field) for field in _METADATA if getattr(metadata, field)}
    attributes = {
        f"program {name}": without_random(" ".join(str(value).split()))
        for name, value in sorted(program.attributes.items())
    }
    return {**fields, **dict(sorted(metadata.userDefined.items())), **attributes}


def _files(package: Package) -> dict[str, str]:
    """Return what is in a package's files: of weights and the specification, the paths alone."""
    found = {}
    for name, data in package.files.items():
        if name == MANIFEST:
            found[name] = _manifest(data)
        elif name == package.spec_path or name.endswith(".bin"):
            found[name] = "there"
        else:
            found[name] = f"#{_digest(data)}"
    return found


def _manifest(data: memoryview) -> str:
    """Return a manifest as text without the keys of its entries, which are drawn at random."""
    content = json.loads(bytes(data))
    entries = content.get("itemInfoEntries")
    if isinstance(entries, dict):
        items = sorted(json.dumps(entry, sort_keys=True) for entry in entries.values())
        root = entries.get(content.get("rootModelIdentifier"))
        content |= {"itemInfoEntries": items, "rootModelIdentifier": root}
    return without_random(json.dumps(content, sort_keys=True))


def _features(package: Package, function: str) -> dict[str, str]:
    """Return the features in a function's description as text, by kind and name."""
    description = package.described(function)
    return {
        f"{field} {feature.name}": " ".join(str(feature.type).split())
        for field in _FEATURES
        for feature in getattr(description, field)
    }


def _diff_constants(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    texts = [{name: _constant(value) for name, value in x.items()} for x in (a, b)]
    yield from changed("", "constant", *texts)


def _constant(value: Any) -> str:
    """Return a constant as text: an array by its values when they are few, else by a digest."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, np.ndarray):
        few = value.size <= _MAX_SHOWN
        shown = value.tolist() if few else f"#{_digest(value.tobytes())}"
        return f"{value.dtype}{list(value.shape)} {shown}"
    return repr(value)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:8]
