"""The gate's structure tier: what HEAD holds that BASE does not, without executing either.

Differences of `harness.diff` become metrics, each with the name by which it is accepted. Weights
and tables are compared value by value, dequantized. Sizes and sharing are judged, not accepted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from harness.artifact import Artifact, Package
from harness.diff import Difference, diff_artifacts
from harness.diff.difference import WeightSource
from harness.errors import HarnessError
from harness.measure import Metric, Numbers
from harness.mil import Function, get_policy, load_function
from harness.mil.values import read_constant
from harness.models.recognise import read_model
from harness.subject import Subject
from harness.text import clip, counted

_MAX_TEXT = 120  # characters of a value in a message

# By the kind of a difference, or by its kind and subject; None where a metric of its own judges it.
_ACCEPTED_AS: Mapping[str | tuple[str, str], str | None] = {
    "method": "interface",
    "input": "interface",
    "output": "interface",
    "order": "interface",
    "description": "interface",
    "function": "names",
    "delegate": "names",
    "metadata.json": "names",
    ("delegate", "key"): "identifiers",
    ("delegate", "identifier"): "identifiers",
    ("package", "specification version"): "options",
    ("package", "default function"): "names",
    ("package", "described functions"): "names",
    "package": None,
    "size": None,
    "weight bytes": None,
    "option": "options",
    "opset": "options",
    "metadata": "metadata",
    "file": "metadata",
    "named data": "metadata",
    "bytes": "metadata",
    "constant": "constants",
    "program": "program",
    "operation": "program",
    "wiring": "program",
    "operations": None,
    "names": None,
    "weight": "weights",
}


def accepted_as(found: Difference) -> str | None:
    """Return the name that accepts a difference, None where a metric of its own judges it."""
    return _ACCEPTED_AS.get((found.kind, found.what), _ACCEPTED_AS[found.kind])


def structure_metrics(base: Subject, head: Subject) -> tuple[list[Metric], list[Difference]]:
    """Return the metrics of two artifacts' structures, and the differences that they come from.

    Raises ArtifactError when a part of either is damaged.
    """
    artifacts = base.artifact, head.artifact
    found = diff_artifacts(*artifacts)
    metrics = [
        *_sharing_metrics(*artifacts),
        *_count_metrics(*artifacts),
        *_difference_metrics(found, base, head),
    ]
    return metrics, found


def _sharing_metrics(base: Artifact, head: Artifact) -> Iterator[Metric]:
    """Yield for each part of the model the bytes of its weights, and whether any is there twice."""
    ours, theirs = _parts(base), _parts(head)
    for part in ours:
        if part not in theirs:
            continue
        (stored, twice), (stored_now, twice_now) = ours[part], theirs[part]
        texts = _megabytes(stored), _megabytes(stored_now)
        verdict, reason = "same", ""
        lost = twice_now > twice and stored_now > stored
        if lost or (twice_now < twice and stored_now < stored):
            verdict, change = ("regression", "lost") if lost else ("better", "gained")
            unit = "MB" if "." in texts[0] + texts[1] else "bytes"
            sizes = f"{texts[0].removesuffix(unit).strip()} -> {texts[1]}"
            reason = f"sharing of {part} weights is {change}: {sizes}"
        yield Metric("artifact", f"{part} weights", "fact", *texts, verdict, reason)


def _parts(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """Return the bytes of weights that each part of a model stores, and how many of them twice."""
    packages: dict[str, dict[Package, None]] = {}
    for functions in _functions(artifact).values():
        for package, function in functions:
            kinds = {op.type for op in package.operations(function).operations}
            if kinds & {"softmax", "scaled_dot_product_attention"}:
                part = "the blocks'"
            else:
                part = "the embedding's" if "gather" in kinds else "the other"
            packages.setdefault(part, {})[package] = None
    return {part: _stored(list(held)) for part, held in packages.items()}


def _stored(packages: list[Package]) -> tuple[int, int]:
    blobs = [
        package.blob(*reference)
        for package in packages
        for reference in frozenset[tuple[str, int]]().union(
            *(package.weights(name) for name in package.functions)
        )
    ]
    contents = {(b.dtype, hashlib.sha256(b.data).digest()): len(b.data) for b in blobs}
    stored = sum(len(blob.data) for blob in blobs)
    return stored, stored - sum(contents.values())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 10_000_000 else f"{size:,} bytes"


def _functions(artifact: Artifact) -> dict[str, list[tuple[Package, str]]]:
    """Return the functions that each method calls, or each function of a package by itself."""
    if artifact.package is not None:
        package = artifact.package
        return {name: [(package, name)] for name in package.functions}
    return {
        method: [(d.bundle.package, d.program_function) for d in delegates]
        for method, delegates in artifact.delegates.items()
    }


def _count_metrics(base: Artifact, head: Artifact) -> Iterator[Metric]:
    """Yield the number of operations of each method; fewer are better."""
    ours, theirs = _functions(base), _functions(head)
    for method in ours:
        if method not in theirs:
            continue
        before, after = (_operations(functions[method]) for functions in (ours, theirs))
        counts = before.total(), after.total()
        verdict = "same"
        if counts[0] != counts[1]:
            verdict = "better" if counts[1] < counts[0] else "changed"
        kinds = (kind for kind in before | after if before[kind] != after[kind])
        reason = ", ".join(f"{kind} {before[kind]} -> {after[kind]}" for kind in kinds)
        case, texts = f"method '{method}'", (str(counts[0]), str(counts[1]))
        yield Metric(case, "operations", "fact", *texts, verdict, reason, "program")


def _operations(functions: Iterable[tuple[Package, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for package, name in functions:
        found.update(op.type for op in package.operations(name).operations)
    del found["const"]
    return found


def _difference_metrics(
    found: Iterable[Difference], base: Subject, head: Subject
) -> Iterator[Metric]:
    values = WeightValues(base, head)
    seen: set[tuple[object, ...]] = set()
    for one in found:
        accept = accepted_as(one)
        if accept is None or one.is_incidental or one.is_name:
            continue
        if one.what == "key" and None in (one.a, one.b):
            continue  # the payload's kind has changed, which is a difference itself
        case, name = one.where or "artifact", f"{one.kind} {one.what}"
        base_value, head_value, name = _first(one.a, one.b, name)
        texts, reason = (_text(base_value), _text(head_value)), ""
        numbers: Numbers = {}
        if one.kind == "weight":
            key = tuple(source and source.place for source in one.sources)
            if key in seen:  # both methods of a package have it
                continue
            seen.add(key)
            if values.have_name(one):
                continue  # compared below, by its name
            reason, numbers = values.compared(one)
        elif one.kind == "constant":
            arrays = [x.artifact.constants.get(one.what) for x in (base, head)]
            if all(isinstance(array, np.ndarray) for array in arrays):
                tensors = [torch.from_numpy(np.array(array)) for array in arrays]
                reason, numbers = value_change(tensors[0], tensors[1])
                accept = "tables" if tensors[0].is_floating_point() else accept
        yield Metric(case, name, "fact", *texts, "changed", reason, accept, numbers)
    for where, name, reason, numbers in values.of_names():
        yield Metric(where, name, "fact", "", "", "changed", reason, "weights", numbers)


def _first(base: Any, head: Any, name: str) -> tuple[Any, Any, str]:
    """Return the first entries in which two lists of equal length differ, and their place."""
    if isinstance(base, list) and isinstance(head, list) and len(base) == len(head):
        for index, pair in enumerate(zip(base, head, strict=True)):
            if pair[0] != pair[1]:
                return *pair, f"{name}, the first at {index}"
    return base, head, name


def _text(value: Any) -> str:
    if value is None:
        return "(none)"
    return clip(value if isinstance(value, str) else json.dumps(value), _MAX_TEXT)


class WeightValues:
    """Compares weights by their dequantized values.

    Those of two language models are compared by the names that they have in their architecture, in
    whatever order the programs take them; all others by their places.
    """

    def __init__(self, base: Subject, head: Subject) -> None:
        self._subjects = base, head
        self._functions: dict[tuple[Package, str], Function] = {}
        self._by_name = False

    def compared(self, found: Difference) -> tuple[str, Numbers]:
        """Return how a weight's values differ, as text and as numbers."""
        tensors = [None if source is None else self._tensor(source) for source in found.sources]
        if tensors[0] is None or tensors[1] is None:
            return "", {}
        return value_change(tensors[0], tensors[1])

    def have_name(self, found: Difference) -> bool:
        """Return whether `of_names` compares the weights of a difference."""
        if not all(self._named):
            return False
        for source, named in zip(found.sources, self._named, strict=True):
            tensor = None if source is None else self._tensor(source)
            if source is not None and (tensor is None or not _is_among(tensor, named)):
                return False
        self._by_name = True
        return True

    def of_names(self) -> Iterator[tuple[str, str, str, Numbers]]:
        """Yield methods, name and change of each weight that differs; one in two methods once.

        Without a difference that `have_name`, there is nothing to yield: names follow the order of
        emission, which may differ while both compute the same.
        """
        ours, theirs = self._named if self._by_name else ({}, {})
        changes: dict[tuple[str, str], tuple[list[str], Numbers]] = {}
        for method in (name for name in ours if name in theirs):
            for name in dict.fromkeys([*ours[method], *theirs[method]]):
                base, head = ours[method].get(name), theirs[method].get(name)
                numbers: Numbers = {}
                if base is None or head is None:
                    reason = f"only {'HEAD' if base is None else 'BASE'} has it"
                elif base.shape == head.shape and base.equal(head):
                    continue
                else:
                    reason, numbers = value_change(base, head)
                changes.setdefault((name, reason), ([], numbers))[0].append(f"'{method}'")
        for (name, reason), (methods, numbers) in changes.items():
            noun = "method" if len(methods) == 1 else "methods"
            yield f"{noun} {' and '.join(methods)}", f"weight {name}", reason, numbers

    def _tensor(self, source: WeightSource) -> torch.Tensor | None:
        """Return a weight, dequantized; None when the artifact is too broken for it."""
        package, name = source.package, source.function
        try:
            if source.result is None:
                return read_constant(source.value, package, f"{package.what}, '{name}'").tensor()
            if (package, name) not in self._functions:
                loaded = load_function(package, name, get_policy("widen"), stateful=True)
                self._functions[package, name] = loaded
            return self._functions[package, name].constant(source.result)
        except HarnessError:
            return None

    @cached_property
    def _named(self) -> tuple[_Named, _Named]:
        base, head = map(_named, self._subjects)
        return base, head


_Named = Mapping[str, Mapping[str, torch.Tensor]]
"""Weights by method and name."""


def _named(subject: Subject) -> _Named:
    """Return a language model's weights, none of a model that is not recognised."""
    if not subject.is_language_model:
        return {}
    try:
        artifact = subject.artifact
        return {method: dict(read_model(artifact, method)[1]) for method in artifact.methods}
    except HarnessError:
        return {}


def _is_among(tensor: torch.Tensor, named: _Named) -> bool:
    return any(
        weight.shape == tensor.shape and torch.equal(weight, tensor.float())
        for weights in named.values()
        for weight in weights.values()
    )


def value_change(base: torch.Tensor, head: torch.Tensor) -> tuple[str, Numbers]:
    """Return how values differ: how many, where first, by how much of their own size at most.

    A change of a zero is relative to the tensor's largest value.
    """
    if base.shape != head.shape:
        return f"shape {list(base.shape)} -> {list(head.shape)}", {}
    before, after = base.double().reshape(-1), head.double().reshape(-1)
    differs = ~((before == after) | (before.isnan() & after.isnan()))
    numbers: dict[str, float] = {"values": before.numel(), "differing": int(differs.sum())}
    if not numbers["differing"]:
        return "the values are equal; they are stored in another way", numbers
    first = int(differs.int().argmax())
    index = [int(i) for i in np.unravel_index(first, tuple(base.shape))]
    reason = f"{numbers['differing']:,} of {counted(before.numel(), 'value')} differ, "
    if base.is_floating_point():
        size = torch.where(before == 0, before.abs().max(), before.abs())
        relative = float(((after - before).abs() / size)[differs].max())
        reason += f"by up to {_percent(relative)}, "
        if math.isfinite(relative):
            numbers["largest relative change"] = relative
    reason += f"the first at {index}: {before[first]:.6g} -> {after[first]:.6g}"
    return reason, numbers


def _percent(relative: float) -> str:
    if not math.isfinite(relative):
        return "infinity"
    return f"{relative:.2%}" if relative < 10 else f"{relative:,.0f} times"
