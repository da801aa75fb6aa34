"""The gate finds every mutant against its sound source, names the place, and passes healthy pairs.

The structure tier suffices: it executes nothing. A row of `PLACES` says what a line of the gate
must name. Healthy pairs are two exports of one model, and copies that differ in names and orders.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.export.exporters import exporters_at_hand, get_exporter
from harness.fixtures.cache import fixture
from harness.measure import GateResult
from harness.measure.artifacts import compare_artifacts
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export, FolderExport
from harness.suites.mutants.judge import Mutation
from harness.suites.mutants.test_mutants import OF_CONSTANTS, OF_NAMES, OF_PROGRAMS, OF_WEIGHTS

pytestmark = pytest.mark.mutant
NAMES = r"method 'forward', delegate 1: delegate (in|out)put names, the first at \d+: \w+ -> \w+"
OPERATION = r"method 'forward', delegate \d, function '\w+': operation \d+: \w+"
INPUTS = r"function '\w+': wiring \d+: \w+ = \w+, inputs.*: \w+.* -> \w+"
PLACES = {
    "two key caches swapped": NAMES,
    "keys and values swapped": NAMES,
    "cosines and sines swapped": NAMES,
    "a mask and a cache swapped": NAMES,
    "two outputs swapped": rf"{NAMES}|calls, the first at 1",
    "an input named twice": "metadata.json's inputNames names .* twice",
    "an input without a name": r"method 'forward': input .*: \w+\[.*\] -> \(none\)",
    "a method without metadata": "method 'prefill'.*: metadata.json has no method 'prefill'",
    "metadata of no function": "delegate 1: metadata.json methods: .*prefill.* -> .*verify",
    "an unknown default method": "metadata.json's default_method is 'verify'",
    "another default function": "delegate 1, package: package default function: forward -> prefill",
    "an unknown default function": "default function: forward -> verify|no function 'verify'",
    "another method's function": "'forward', delegate 0: delegate function: forward -> prefill",
    "no function named": r"'forward', delegate 0: delegate function: forward -> \(none\)",
    "an unknown function": "no function 'verify'; its functions: forward, prefill",
    "data that is not there": "method 'forward'.*coreml_executorch_of_another_export",
    "a reference of another version": "method 'forward', delegate 0: a reference of version 2",
    "another partition's package": r"method 'forward': operations: \d+ -> \d+",
    "a function renamed": "no function 'prefill'; its functions: forward, renamed",
    "a single package describes functions": r"delegate 1, package: .* functions: \[\] -> .*main",
    "a single payload names a function": r"constant prefill_input_len: 16 -> \(none\)",
    "a weight is not shared": "sharing of the blocks' weights is lost: [0-9,]+ -> [0-9,]+ bytes",
    "a weight is stored twice": "sharing of the blocks' weights is lost: [0-9,]+ -> [0-9,]+ bytes",
    "a weight that nobody uses": "package 1: its weight files hold 2112 bytes that no function",
    "a scale off by 1 %": r"layers.0.attention.wq.weight: .* of 4,096 values .* 1.05%.*\[3, 0\]",
    "a norm off by 1 %": r"layers.0.attention_norm.weight: .* 1 of 64 .* 0.99%.*\[5\]: 0.639",
    "two weights swapped": rf"layers.0.feed_forward.w[13].weight: .*12,070 of|{OPERATION}",
    "a bias": r"function '\w+': weight linear_0_bias_0: .*1 of 64 values differ.*\[7\]: 0 -> 0.09",
    "activations beyond fp16": "tok_embeddings.weight: .* by up to 2,001 times",
    "the epsilon": rf"{OPERATION} = add, y: FLOAT16\[\] 1e-05 -> FLOAT16\[\] 0.0001",
    "one epsilon": rf"{OPERATION} = add, y: FLOAT16\[\] 1e-05 -> FLOAT16\[\] 0.0001",
    "the attention scale": rf"{OPERATION} = mul, y: FLOAT16\[\] 0.25 -> FLOAT16\[\] 0.255",
    "add is sub": rf"{OPERATION}: add.* -> sub",
    "silu is sigmoid": rf"{OPERATION}: silu.* -> sigmoid",
    "the mask's sign": rf"{OPERATION}: add.* -> sub",
    "the mask ignored": INPUTS,
    "the softmax axis": rf"{OPERATION} = softmax, axis: INT32\[\] -1 -> INT32\[\] -2",
    "new keys before cached ones": INPUTS,
    "another layer's cache": r"wiring \d+: .* = concat, inputs.*_0_l0_h0.* -> .*_0_l1_h0",
    "RoPE of halves": rf"{OPERATION}: slice_by_index",
    "RoPE joined as halves": rf"{OPERATION}: stack",
    "the last position ignored": rf"{OPERATION}: select.* -> mul",
    "fp32 leaks": rf"{OPERATION} = silu, result: FLOAT16.* -> FLOAT32",
    "fused attention": rf"{OPERATION}: softmax.* -> scaled_dot_product_attention",
    "a state is read": rf"{OPERATION}: silu.* -> read_state",
    "a state is taken": r"function '\w+': input .*cache.*: FLOAT16.* -> state FLOAT16",
    "one row of a table": r"constant freqs_sin: .*8 of 1,024 values differ.*\[20, 0\]: 0.913",
    "a table for another layout": r"constant freqs_cos: .*889 of 1,024 values differ.*\[1, 1\]",
    "the tables' inputs swapped": r"freqs_cos_input_index: .*\[0\]: 2 -> 3",
    "an index of two tables": r"freqs_sin_input_index: .*\[0\]: 3 -> 2",
    "a row's key and value inputs swapped": r"kv_cache_specs: .*2 of 20 .*\[0, 0\]: 4 -> 8",
    "key and value inputs swapped": r"kv_cache_specs: .*8 of 20 .*\[0, 0\]: 4 -> 8",
    "key and value updates swapped": r"kv_cache_specs: .*8 of 20 .*\[0, 1\]: 1 -> 5",
    "ids of 8 bits": r"function '\w+': operation \d+: (cast|\w+: cast\(.*'int8')",
    "two rows' key inputs swapped": r"kv_cache_specs: .*2 of 20 values differ.*\[0, 0\]: 4 -> 5",
    "two rows' key outputs swapped": r"kv_cache_specs: .*2 of 20 values differ.*\[0, 1\]: 1 -> 2",
    "two rows' value outputs swapped": r"kv_cache_specs: .*2 of 20 values differ.*\[0, 3\]: 5 -> 6",
    "a longer mask": r"mask_specs: .*1 of 2 values differ.*\[0, 1\]: \d+ -> \d+",
    "longer caches": r"kv_cache_specs: .*4 of 20 values differ.*\[0, 4\]: \d+ -> \d+",
}
ALL = [
    pytest.param(what, mutate, mode, id=f"{what}, {mode}")
    for what, mutate, modes, _ in OF_NAMES + OF_WEIGHTS + OF_PROGRAMS + OF_CONSTANTS
    for mode in modes
]
# These look for ExecuTorch's names of values, or for what a .pte alone has.
ONLY_IN_A_PTE = {
    "two key caches swapped",
    "keys and values swapped",
    "cosines and sines swapped",
    "a mask and a cache swapped",
    "a reference of another version",
    "a single payload names a function",
    "a weight is stored twice",
    "a norm off by 1 %",
    "a bias",
    "the epsilon",
    "one epsilon",
    "another layer's cache",
}
OURS = [row for row in ALL if row.values[0] not in ONLY_IN_A_PTE]


@pytest.fixture(scope="module")
def sources() -> Callable[[str, str], Path]:
    subjects = Subjects(lambda stage: None)
    return lambda name, mode: subjects.get(name, mode).artifact.path


def structure(base: Path, head: Path) -> tuple[GateResult, list[str]]:
    """Return the gate's result, and a line for each metric that is not the same."""
    result = compare_artifacts(base, head, tiers=["structure"])
    differing = (m for m in result.metrics if m.verdict != "same")
    return result, [f"{m.case}: {m.name}: {m.base} -> {m.head} {m.reason}" for m in differing]


@pytest.mark.parametrize(("what", "mutate", "mode"), ALL)
def test_a_mutant_of_executorchs_export_is_named(
    sources: Callable[[str, str], Path], tmp_path: Path, what: str, mutate: Mutation, mode: str
) -> None:
    base = sources("tiny", mode)
    export = Export(base)
    mutate(export)
    result, lines = structure(base, export.save(tmp_path / "mutant.pte"))
    assert result.status == 1
    assert any(re.search(PLACES[what], line) for line in lines), "\n".join(lines)


@pytest.mark.parametrize(("what", "mutate", "mode"), OURS)
def test_a_mutant_of_our_export_is_named(
    sources: Callable[[str, str], Path], tmp_path: Path, what: str, mutate: Mutation, mode: str
) -> None:
    base = sources("coreml:tiny", mode)
    export = FolderExport(base)
    mutate(export)  # type: ignore[arg-type]
    result, lines = structure(base, export.save(tmp_path / "mutant"))
    assert result.status == 1
    assert any(re.search(PLACES[what], line) for line in lines), "\n".join(lines)


def test_what_is_accepted_by_name_passes(
    sources: Callable[[str, str], Path], tmp_path: Path
) -> None:
    base = sources("tiny", "single")
    export = Export(base)
    weights.perturb_a_norm(export)
    result, _ = structure(base, export.save(tmp_path / "mutant.pte"))
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
    programs.touch_everything,
    rename_values,
    shuffle_operations,
    swap_operands,
    reorder_metadata,
    rename_arguments,
    new_identifiers,
]


@pytest.mark.parametrize("mode", ["single", "multifunction"])
@pytest.mark.parametrize("change", HEALTHY, ids=lambda change: change.__name__)
def test_names_and_orders_pass(
    sources: Callable[[str, str], Path], tmp_path: Path, change: Mutation, mode: str
) -> None:
    base = sources("tiny", mode)
    export = Export(base)
    change(export)
    result, lines = structure(base, export.save(tmp_path / "other.pte"))
    assert not lines and result.status == 0


@pytest.mark.parametrize("mode", ["single", "multifunction"])
@pytest.mark.parametrize("exporter", ["executorch", "executorch@1.5.1", "coreml"])
def test_a_model_exported_again_passes(
    sources: Callable[[str, str], Path], tmp_path: Path, exporter: str, mode: str
) -> None:
    """By the same version and by another one, exported now, not found in the cache."""
    if exporter not in ("coreml", *(name for name, _ in exporters_at_hand())):
        pytest.skip(f"{exporter} is not at hand")
    model = fixture("tiny")
    again = tmp_path / ("again" if exporter == "coreml" else "again.pte")
    options = replace(model.options, mode=mode)
    get_exporter(exporter).export(model.checkpoint, model.params, options, again)
    base = sources("coreml:tiny" if exporter == "coreml" else "tiny", mode)
    result, lines = structure(base, again)
    assert not lines and result.status == 0
