"""Compares two Core ML packages: their descriptions, and each pair of their functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from harness.artifact.facts import sharing
from harness.artifact.package import Package, described
from harness.diff.difference import Difference, changed, reordered, same_files
from harness.diff.functions import Weights, align, diff_operations, diff_weights
from harness.diff.steps import steps, type_text

_METADATA = ("shortDescription", "versionString", "author", "license")
_FEATURES = ("input", "output", "state")


class Pair:
    """Two packages; however many methods refer to them, each pair of functions is compared once."""

    def __init__(self, a: Package, b: Package) -> None:
        self._packages = a, b
        self._weights = Weights(a), Weights(b)
        self._seen: set[tuple[str, str]] = set()
        self._same = same_files(a.files, b.files)

    def package(self, where: str) -> Iterator[Difference]:
        """Yield the differences between the packages as a whole."""
        if self._same:
            return
        yield from changed(where, "package", *map(_facts, self._packages))
        yield from changed(where, "metadata", *map(_metadata, self._packages))
        functions = [dict.fromkeys(p.functions, "there") for p in self._packages]
        yield from changed(where, "function", *functions)

    def function(self, where: str, a: str, b: str) -> Iterator[Difference]:
        """Yield the differences of two functions, unless these two were compared before."""
        if (self._same and a == b) or (a, b) in self._seen:
            return
        self._seen.add((a, b))
        packages, names = self._packages, (a, b)
        blocks = [p.operations(name) for p, name in zip(packages, names, strict=True)]
        functions = [p.functions[name] for p, name in zip(packages, names, strict=True)]
        yield from changed(where, "opset", *({"opset": f.opset} for f in functions))
        inputs = [{v.name: type_text(v.type) for v in f.inputs} for f in functions]
        yield from changed(where, "input", *inputs)
        yield from reordered(where, "inputs", *map(list, inputs))
        features = [_features(p, name) for p, name in zip(packages, names, strict=True)]
        yield from changed(where, "description", *features)
        ours, theirs = (steps(f, block) for f, block in zip(functions, blocks, strict=True))
        alignment = align(ours, theirs)
        yield from diff_operations(where, ours, theirs, alignment)
        yield from diff_weights(where, alignment, *self._weights)


def _facts(package: Package) -> dict[str, Any]:
    model = package.model
    shared = {f"weight bytes {key}": value for key, value in asdict(sharing(package)).items()}
    return {
        "specification version": model.specificationVersion,
        "default function": model.description.defaultFunctionName or None,
        "size": package.size,
        **shared,
    }


def _metadata(package: Package) -> dict[str, str]:
    metadata = package.model.description.metadata
    fields = {field: getattr(metadata, field) for field in _METADATA if getattr(metadata, field)}
    return {**fields, **dict(sorted(metadata.userDefined.items()))}


def _features(package: Package, function: str) -> dict[str, str]:
    """Return the features in a function's description as text, by kind and name."""
    description = described(package.model.description, function)
    return {
        f"{field} {feature.name}": " ".join(str(feature.type).split())
        for field in _FEATURES
        for feature in getattr(description, field)
    }
