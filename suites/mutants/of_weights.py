"""Mutations of weights: their values, and how often they are stored."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.subject import Subject
from harness.suites.mutants.edit import Export, Payload, copy_blob, halves, put_half, scale_half
from harness.suites.mutants.faults import (
    FOLDER,
    KINDS,
    MULTI,
    NUMBERS,
    PTE,
    SINGLE,
    WRONG,
    Mutant,
    fault,
)
from harness.suites.mutants.judge import (
    judge_bytes,
    judge_export,
    judge_subject,
    opened,
    sound,
)
from harness.suites.mutants.of_programs import FUNCTION, OPERATION, QUANTIZED, blocks

row = partial(fault, room="weights", judge=judge_export)
PERTURBED = {"weights": "differ from the checkpoint's", "parity": WRONG}

Halves = np.ndarray[Any, np.dtype[Any]]


def constant(payload: Payload, function: str, *ends: str) -> Any:
    """Return the `blobFileValue` of the first constant whose name has one of the ends."""
    for operation in payload.operations(function, "const"):
        value = operation.attributes["val"]
        if operation.outputs[0].name.endswith(ends) and value.HasField("blobFileValue"):
            return value.blobFileValue
    raise AssertionError(f"no weight is called {' or '.join(f'*{end}' for end in ends)}")


@row(
    "a weight is not shared",
    {"weight-sharing": "[1-9][0-9]* bytes of weights are not shared"},
    "ET 18531",
    modes=MULTI,
    gate="sharing of the blocks' weights is lost: [0-9,]+ -> [0-9,]+ bytes",
    room="sharing",
)
def unshare_a_weight(export: Export) -> None:
    """Give one function its own copy of a weight that both used."""
    payload = blocks(export)
    operation = payload.operations(export.functions[-1], QUANTIZED)[0]
    reference = operation.inputs["data"].arguments[0].value.blobFileValue
    reference.offset = copy_blob(payload.weights, reference)


@row(
    "a weight is stored twice",
    {"weight-sharing": "[1-9][0-9]* bytes are in the package twice"},
    modes=MULTI,
    kinds=PTE,
    gate="sharing of the blocks' weights is lost: [0-9,]+ -> [0-9,]+ bytes",
    room="sharing",
)
def store_a_weight_twice(export: Export) -> None:
    """Let two operations that used one blob use two of the same content, in every function."""
    payload = blocks(export)
    copies: dict[int, int] = {}
    for function in export.functions:
        reference = constant(payload, function, "linear_3_bias_0")
        assert reference.offset == constant(payload, function, "linear_0_bias_0").offset
        if reference.offset not in copies:
            copies[reference.offset] = copy_blob(payload.weights, reference)
        reference.offset = copies[reference.offset]


@row(
    "a weight that nobody uses",
    {"references": "hold 2112 bytes that no function refers to"},
    gate="package 1: its weight files hold 2112 bytes that no function",
    room="sharing",
)
def leave_a_weight_behind(export: Export) -> None:
    """Add a blob to the weight file to which no function refers."""
    payload = blocks(export)
    operation = payload.operations(export.functions[0], QUANTIZED)[0]
    copy_blob(payload.weights, operation.inputs["data"].arguments[0].value.blobFileValue)


@row(
    "a scale off by 1 %",
    PERTURBED,
    gate=r"layers.0.attention.wq.weight: .* of 4,096 values .* 1.05%.*\[3, 0\]",
    room="quantization",
)
def perturb_a_scale(export: Export) -> None:
    """Make one row of a quantized linear 1 % too large."""
    payload = blocks(export)
    operation = payload.operations(export.functions[0], QUANTIZED)[0]
    reference = operation.inputs["scale"].arguments[0].value.blobFileValue
    scale_half(payload.weights, reference, 3, 1.01)


@row(
    "a norm off by 1 %",
    PERTURBED,
    kinds=PTE,
    gate=r"layers.0.attention_norm.weight: .* 1 of 64 .* 0.99%.*\[5\]: 0.639",
)
def perturb_a_norm(export: Export) -> None:
    """Make one weight of a norm 1 % too large."""
    payload = blocks(export)
    reference = constant(payload, export.functions[0], "attention_norm_weight")
    scale_half(payload.weights, reference, 5, 1.01)


def redraw_a_norm(export: Export) -> None:
    """Draw all weights of a norm anew."""
    _change_norm(export, lambda values: np.random.default_rng(1).uniform(0.5, 1.5, len(values)))


def noise_on_a_norm(export: Export) -> None:
    """Add noise of 3 % to each weight of a norm."""
    _change_norm(
        export, lambda values: values * np.random.default_rng(2).normal(1, 0.03, len(values))
    )


def _change_norm(export: Export, change: Callable[[Halves], Halves]) -> None:
    payload = blocks(export)
    # Our exporter numbers weights: those of a block's seven linear layers come first.
    reference = constant(payload, export.functions[0], "attention_norm_weight", "weight_7")
    values = halves(payload.weights, reference)
    values[:] = change(values.astype(np.float64))


@row(
    "a bias",
    NUMBERS,
    kinds=PTE,
    gate=r"function '\w+': weight linear_0_bias_0: .*1 of 64 values differ.*\[7\]: 0 -> 0.09",
)
def add_a_bias(export: Export) -> None:
    """Set one bias to 0.1: a Llama has none, and the exporter writes zeros."""
    payload = blocks(export)
    put_half(payload.weights, constant(payload, export.functions[0], "linear_0_bias_0"), 7, 0.1)


@row(
    "two weights swapped",
    PERTURBED,
    gate=rf"layers.0.feed_forward.w[13].weight: .*12,070 of|{OPERATION}",
)
def swap_two_weights(export: Export) -> None:
    """Swap the gate and the up projection of a layer, which have equal shapes."""
    payload = blocks(export)
    for function in export.functions:
        made = {op.outputs[0].name: op for op in payload.operations(function, QUANTIZED)}
        gate, up = (
            made[op.inputs["weight"].arguments[0].name]
            for op in payload.operations(function, "linear")[4:6]
        )
        for part in ("data", "scale"):
            x, y = gate.inputs[part].arguments[0], up.inputs[part].arguments[0]
            held = type(x).FromString(x.SerializeToString())
            x.CopyFrom(y)
            y.CopyFrom(held)


@row(
    "activations beyond fp16",
    {"fp16-range": "exceed fp16's"},
    "ET 19523",
    gate="tok_embeddings.weight: .* by up to 2,001 times",
    room="quantization",
    kinds=PTE,
)
def huge_activations(export: Export) -> None:
    """Make the embedding 2,000 times too large: an RMSNorm's squares leave fp16's range.

    Our exporter's RMSNorm, of a folder, scales what it squares.
    """
    _scale_embedding(export, 2000.0)


@row(
    "an embedding beyond fp16",
    {"fp16-range": "logits are NaN or infinite, first at "},
    "ET 19523",
    room="quantization",
    kinds=FOLDER,
    tested=FOLDER,
)
def huge_embedding(export: Export) -> None:
    """Make the embedding 1,000,000 times too large: its values are infinite."""
    _scale_embedding(export, 1e6)


def _scale_embedding(export: Export, factor: float) -> None:
    payload = export.payloads[0]
    operation = payload.operations(export.functions[0], QUANTIZED)[0]
    value = operation.inputs["scale"].arguments[0].value
    for index in range(value.type.tensorType.dimensions[0].constant.size):
        scale_half(payload.weights, value.blobFileValue, index, factor)


@row(
    "a weight in the program",
    {
        "copies": rf"{FUNCTION}its program holds weights that belong in the weight file: "
        rf"'\w+' \(\d+ bytes\)"
    },
    judge=judge_bytes,
    alone=True,
    modes=MULTI,
    kinds=PTE,
    tested=PTE,
    room="sharing",
)
def weight_in_program(export: Export) -> None:
    """Write the weights of a norm into the program of the first function."""
    payload, function = blocks(export), export.functions[0]
    reference = constant(payload, function, "norm_weight")
    _, _, size, start = struct.unpack_from("<IIQQ", payload.weights, reference.offset)
    content, offset = bytes(payload.weights[start : start + size]), reference.offset
    for op in payload.operations(function, "const"):
        value = op.attributes["val"]
        if value.HasField("blobFileValue") and value.blobFileValue.offset == offset:
            value.immediateValue.tensor.bytes.values = content


@row(
    "an uncalled function",
    {"copies": r"package 1: no method calls its functions \['verify'\]"},
    judge=judge_bytes,
    alone=True,
    tested=KINDS,
    modes=MULTI,
    room="sharing",
)
def uncalled_function(export: Export) -> None:
    """Add a function that no method calls, described everywhere."""
    payload = blocks(export)
    first = export.functions[0]
    functions = payload.model.mlProgram.functions
    functions["verify"].CopyFrom(functions[first])
    entries = payload.model.description.functions
    entries.add().CopyFrom(next(entry for entry in entries if entry.name == first))
    entries[-1].name = "verify"
    payload.metadata["methods"]["verify"] = payload.metadata["methods"][first]


@row(
    "sharing that was lost",
    {"weight-sharing": "1 functions;", "sharing-size": "6 packages without sharing, 6 with it"},
    "ET 18531",
    room="sharing",
    judge=judge_subject,
    modes=MULTI,
)
def without_sharing(mutant: Mutant) -> Subject:
    """Judge the export without sharing as if it shared."""
    source = sound(mutant.mode, mutant.kind)
    assert source.unshared is not None
    return opened(source.unshared, source)


@row(
    "a layer that the checkpoint lacks",
    {"weights": "layers.3.attention.wk.weight is in the artifact only"},
    judge=judge_subject,
    modes=SINGLE,
)
def shorter_checkpoint(mutant: Mutant) -> Subject:
    """Hold the artifact against a checkpoint without its last layer."""
    source = sound(mutant.mode, mutant.kind)
    assert source.params is not None and source.checkpoint is not None
    sizes = json.loads(source.params.read_text()) | {"n_layers": 3}
    (params := mutant.folder / "params.json").write_text(json.dumps(sizes))
    weights = torch.load(source.checkpoint, weights_only=True)
    kept = {name: value for name, value in weights.items() if not name.startswith("layers.3.")}
    torch.save(kept, checkpoint := mutant.folder / "checkpoint.pth")
    return Subject(source.artifact.path, checkpoint, params)
