"""Compares two ExecuTorch programs: methods, calls, delegates, constants and options."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from harness.artifact import Artifact
from harness.artifact.delegate import BACKEND, Delegate
from harness.artifact.facts import MethodFacts, Tensor, method_facts
from harness.artifact.pte import DelegateCall, KernelCall, Pte
from harness.diff.difference import Difference, changed, reordered
from harness.diff.packages import Pair

_MAX_SHOWN = 32  # values of a constant array; a larger one is shown by its digest


def diff_programs(a: Artifact, b: Artifact) -> Iterator[Difference]:
    """Yield the differences between two programs."""
    yield from changed("", "method", *(dict.fromkeys(x.methods, "there") for x in (a, b)))
    yield from changed("", "option", _options(a.pte), _options(b.pte))
    yield from _diff_constants(a.constants, b.constants)
    pairs: dict[tuple[int, int], Pair] = {}
    for name in a.methods:
        if name in b.methods:
            where = f"method '{name}'"
            yield from _diff_method(where, method_facts(a, name), method_facts(b, name))
            yield from changed(where, "program", *(_calls(x.pte, name) for x in (a, b)))
            yield from _diff_delegates(a.delegates[name], b.delegates[name], pairs)


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
    a: tuple[Delegate, ...], b: tuple[Delegate, ...], pairs: dict[tuple[int, int], Pair]
) -> Iterator[Difference]:
    """Yield the differences between delegates of the same index, and between their packages."""
    indexed = [{delegate.index: delegate for delegate in found} for found in (a, b)]
    for index in dict.fromkeys([d.index for d in (*a, *b)]):
        ours, theirs = (found.get(index) for found in indexed)
        where = (ours or theirs or a[0]).where
        yield from changed(where, "delegate", *(_delegate(d) for d in (ours, theirs)))
        if ours and theirs:
            key = (id(ours.bundle), id(theirs.bundle))
            if key not in pairs:
                pairs[key] = Pair(ours.bundle.package, theirs.bundle.package)
                yield from pairs[key].package(f"{where}, package")
            names = ours.program_function, theirs.program_function
            yield from pairs[key].function(f"{where}, function '{names[0]}'", *names)


def _delegate(delegate: Delegate | None) -> dict[str, Any]:
    """Return a delegate's payload and function, and the names by which it passes arguments."""
    if delegate is None:
        return {}
    reference = delegate.reference
    metadata = delegate.bundle.metadata
    return {
        "payload": "a reference to named data" if reference else "a package of its own",
        "function": delegate.function,
        "key": reference.key if reference else None,
        "identifier": metadata.identifier,
        "default method": metadata.default_method,
        "input names": list(delegate.names.input_names),
        "output names": list(delegate.names.output_names),
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
