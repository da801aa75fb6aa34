"""The gate finds every mutant against its sound source, names the place, and passes healthy pairs.

The structure tier suffices: it executes nothing. `gate` of a row says what a line of the gate must
name. Healthy pairs are two exports of one model, and copies that differ in names and orders.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.export.exporters import exporters_at_hand, get_exporter
from harness.fixtures.cache import fixture
from harness.measure import GateResult
from harness.measure.artifacts import compare_artifacts
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export, Mutation, touch_everything
from harness.suites.mutants.faults import Fault, all_faults
from harness.suites.mutants.judge import sound, written

pytestmark = pytest.mark.mutant
MUTANTS = [
    pytest.param(row, mode, kind, id=f"{row.name}-{mode}-{kind}")
    for row in all_faults().values()
    if row.gate
    for kind in row.kinds
    for mode in row.modes
]


def structure(base: Path, head: Path) -> tuple[GateResult, list[str]]:
    """Return the gate's result, and a line for each metric that is not the same."""
    result = compare_artifacts(base, head, tiers=["structure"])
    differing = (m for m in result.metrics if m.verdict != "same")
    return result, [f"{m.case}: {m.name}: {m.base} -> {m.head} {m.reason}" for m in differing]


@pytest.mark.parametrize(("row", "mode", "kind"), MUTANTS)
def test_a_mutant_is_named(tmp_path: Path, row: Fault, mode: str, kind: str) -> None:
    head = written(row.mutate, mode, tmp_path, kind)
    result, lines = structure(sound(mode, kind).artifact.path, head)
    assert result.status == 1
    assert any(re.search(row.gate, line) for line in lines), "\n".join(lines)


def test_what_is_accepted_by_name_passes(tmp_path: Path) -> None:
    head = written(weights.perturb_a_norm, "single", tmp_path)
    result, _ = structure(sound("single").artifact.path, head)
    assert result.unaccepted == ("weights",) and result.accepting(["weights"]).status == 0
    assert result.accepting(["program"]).status == 1


def rename_values(export: Export) -> None:
    """Give every value that an operation makes another name, as another converter might."""
    for payload in export.payloads:
        for function in export.functions:
            block = payload.block(function)
            inputs = payload.model.mlProgram.functions[function].inputs
            kept = {*block.outputs, *(value.name for value in inputs)}
            for op in block.operations:
                for output in op.outputs:
                    output.name = new_name(output.name, kept)
                for argument in op.inputs.values():
                    for binding in argument.arguments:
                        if binding.name:
                            binding.name = new_name(binding.name, kept)


def new_name(name: str, kept: set[str]) -> str:
    return name if name in kept else name.swapcase()


def shuffle_operations(export: Export) -> None:
    """Emit the operations in another order that the flow of data allows."""
    generator = random.Random(7)
    for payload in export.payloads:
        for function in export.functions:
            operations = payload.block(function).operations
            waiting = [type(op).FromString(op.SerializeToString()) for op in operations]
            made = {output.name for op in waiting for output in op.outputs}
            ordered, known = [], set[str]()
            while waiting:
                ready = [op for op in waiting if needs(op) & made <= known]
                chosen = generator.choice(ready)
                waiting.remove(chosen)
                ordered.append(chosen)
                known |= {output.name for output in chosen.outputs}
            del operations[:]
            operations.extend(ordered)


def needs(operation: object) -> set[str]:
    arguments = operation.inputs.values()  # type: ignore[attr-defined]
    return {binding.name for argument in arguments for binding in argument.arguments}


def swap_operands(export: Export) -> None:
    """Swap the operands of every sum and product."""
    for payload in export.payloads:
        for function in export.functions:
            for kind in ("add", "mul"):
                for operation in payload.operations(function, kind):
                    x, y = operation.inputs["x"].arguments[0], operation.inputs["y"].arguments[0]
                    held = type(x).FromString(x.SerializeToString())
                    x.CopyFrom(y)
                    y.CopyFrom(held)


def reorder_metadata(export: Export) -> None:
    """Describe the methods in metadata.json in another order."""
    for payload in export.payloads:
        described = payload.metadata
        methods = described.pop("methods", None)
        if methods:
            described["methods"] = dict(reversed(methods.items()))


def rename_arguments(export: Export) -> None:
    """Give a function's inputs other names, and pass the arguments by these."""
    payload = programs.blocks(export)
    for function in export.functions:
        message = payload.model.mlProgram.functions[function]
        for value in message.inputs:
            value.name = f"renamed_{value.name}"
        known = {value.name.removeprefix("renamed_") for value in message.inputs}
        for op in payload.block(function).operations:
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.name in known:
                        binding.name = f"renamed_{binding.name}"
    descriptions = [payload.model.description, *payload.model.description.functions]
    for feature in (feature for described in descriptions for feature in described.input):
        feature.name = f"renamed_{feature.name}"
    described = payload.metadata.get("methods")
    for names in described.values() if described else [payload.metadata]:
        names["inputNames"] = [f"renamed_{name}" for name in names["inputNames"]]


def new_identifiers(export: Export) -> None:
    """Draw another identifier for every package."""
    for number, payload in enumerate(export.payloads):
        text = json.dumps(payload.metadata)
        found = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
        assert found is not None
        payload.metadata["identifier"] = payload.metadata["identifier"].replace(
            found.group(), f"01234567-89ab-cdef-0123-{number:012x}"
        )


HEALTHY = [
    touch_everything,
    rename_values,
    shuffle_operations,
    swap_operands,
    reorder_metadata,
    rename_arguments,
    new_identifiers,
]


@pytest.mark.parametrize("mode", ["single", "multifunction"])
@pytest.mark.parametrize("change", HEALTHY, ids=lambda change: change.__name__)
def test_names_and_orders_pass(tmp_path: Path, change: Mutation, mode: str) -> None:
    head = written(change, mode, tmp_path)
    result, lines = structure(sound(mode).artifact.path, head)
    assert not lines and result.status == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "multifunction"])
@pytest.mark.parametrize("exporter", ["executorch", "executorch@1.5.1", "coreml"])
def test_a_model_exported_again_passes(tmp_path: Path, exporter: str, mode: str) -> None:
    """By the same version and by another one, exported now, not found in the cache."""
    if exporter not in ("coreml", *(name for name, _ in exporters_at_hand())):
        pytest.skip(f"{exporter} is not at hand")
    model = fixture("tiny")
    again = tmp_path / ("again" if exporter == "coreml" else "again.pte")
    options = replace(model.options, mode=mode)
    get_exporter(exporter).export(model.checkpoint, model.params, options, again)
    base = sound(mode, "folder" if exporter == "coreml" else ".pte").artifact.path
    result, lines = structure(base, again)
    assert not lines and result.status == 0
