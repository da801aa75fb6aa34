"""`harness inspect FILE`: what is inside an artifact. It reads bytes only, without torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.cli.output import print_painted
from harness.text import printable

if TYPE_CHECKING:
    from harness.artifact.facts import (
        ArtifactFacts,
        FunctionFacts,
        MethodFacts,
        PackageFacts,
        Storage,
        Tensor,
    )

_MAX_TENSORS = 6  # an LLM has two caches a layer: the first few tell the pattern


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .pte, an exported folder or an .mlpackage")
    parser.add_argument("--json", action="store_true", help="print all facts as one JSON object")
    parser.add_argument("--all", action="store_true", help="list every input and output")


def run(args: argparse.Namespace) -> int:
    """Print the facts and return 0."""
    from harness.artifact import open_artifact
    from harness.artifact.facts import artifact_facts

    facts = artifact_facts(open_artifact(args.file))
    if args.json:
        print(json.dumps(facts.to_json(), indent=2))
    else:
        print_painted("".join(f"{printable(line)}\n" for line in _lines(facts, args.all)))
    return 0


def _lines(facts: ArtifactFacts, everything: bool) -> Iterator[str]:
    yield f"{facts.path}: {facts.kind}, {_bytes(facts.size)}"
    for method in facts.methods:
        yield from _method_lines(method, everything)
    for number, package in enumerate(facts.packages):
        yield from _package_lines(number, package, everything)
    yield ""
    yield from _storage_lines(facts.weights)
    if facts.constants:
        yield ""
        yield "constant methods"
        for name, value in facts.constants.items():
            yield f"  {name} = {_constant(value)}"


def _method_lines(method: MethodFacts, everything: bool) -> Iterator[str]:
    yield ""
    yield f"method {method.name}: {method.delegate_calls} delegate calls" + "".join(
        f", {count} {name}" for name, count in method.kernel_calls.items()
    )
    yield from _tensors("in", method.inputs, everything)
    yield from _tensors("out", method.outputs, everything)
    for delegate in method.delegates:
        function = f"function '{delegate.function}'" if delegate.function else "no function named"
        yield f"  delegate {delegate.index}: package {delegate.package}, {function}"


def _package_lines(number: int, package: PackageFacts, everything: bool) -> Iterator[str]:
    kind = "multifunction" if package.multifunction else "single function"
    yield ""
    yield (
        f"package {number}: {kind}, {_bytes(package.size)}, "
        f"specification version {package.specification_version}"
        + (f", {package.identifier}" if package.identifier else "")
    )
    for function in package.functions:
        yield from _function_lines(function, everything)
    sharing = package.sharing
    if len(package.functions) > 1:
        yield (
            f"  weights: {_bytes(sharing.stored)} stored for {_bytes(sharing.used)} used, "
            f"{_bytes(sharing.shared)} shared by all functions"
        )


def _storage_lines(weights: Storage) -> Iterator[str]:
    stored, used = _bytes(weights.stored), _bytes(weights.used)
    saved = f"sharing saves {_bytes(weights.saved)}" if weights.saved else "nothing is shared"
    yield f"weights of the artifact: {stored} stored for {used} used, {saved}"
    for size, what in (
        (weights.repeated, "more could be saved: they are stored again"),
        (weights.in_programs, "are in programs; they belong in weight files"),
        (weights.uncalled, "are in functions that no method calls"),
        (weights.unreferenced, "are in packages and data to which nothing refers"),
    ):
        if size:
            yield f"  {_bytes(size)} {what}"


def _function_lines(function: FunctionFacts, everything: bool) -> Iterator[str]:
    weights = _bytes(function.weight_bytes)
    yield f"  function {function.name}: {function.opset}, {weights} of weights"
    peak = function.activations
    least = "at least " if peak.is_minimum else ""
    yield f"    activations: {least}{_bytes(peak.bytes)}, at {peak.operation}"
    counts = [f"{name} {count}" for name, count in function.operations.items()]
    yield f"    operations: {', '.join(counts)}"
    yield from (f"  {line}" for line in _tensors("in", function.inputs, everything))
    yield from (f"  {line}" for line in _tensors("state", function.states, everything))
    yield from (f"  {line}" for line in _tensors("out", function.outputs, everything))


def _tensors(label: str, tensors: tuple[Tensor, ...], everything: bool) -> Iterator[str]:
    shown = tensors if everything else tensors[:_MAX_TENSORS]
    for tensor in shown:
        shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
        yield f"  {label:>3} {tensor.name}: {tensor.dtype} [{shape}]"
    if len(tensors) > len(shown):
        yield f"      ... {len(tensors) - len(shown)} more (--all)"


def _constant(value: object) -> str:
    match value:
        case {"dtype": dtype, "shape": shape, "values": None}:
            return f"{dtype} {shape}"
        case {"dtype": dtype, "shape": shape, "values": values}:
            text = f"{dtype} {shape} {values}"
            return text if len(text) <= 80 else f"{dtype} {shape}"
    return str(value)


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('', 'kB', 'MB', 'GB')[power]}"
