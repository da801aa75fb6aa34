"""Mutations of weights: their values, and how often they are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.suites.mutants.edit import Export, Payload, copy_blob, halves, put_half, scale_half
from harness.suites.mutants.of_programs import QUANTIZED, blocks

Halves = np.ndarray[Any, np.dtype[Any]]


def constant(payload: Payload, function: str, end: str) -> Any:
    """Return the `blobFileValue` of the first constant whose name has an end."""
    for operation in payload.operations(function, "const"):
        value = operation.attributes["val"]
        if operation.outputs[0].name.endswith(end) and value.HasField("blobFileValue"):
            return value.blobFileValue
    raise AssertionError(f"no weight is called *{end}")


def unshare_a_weight(export: Export) -> None:
    """Give one function its own copy of a weight that both used."""
    payload = blocks(export)
    operation = payload.operations(export.functions[-1], QUANTIZED)[0]
    reference = operation.inputs["data"].arguments[0].value.blobFileValue
    reference.offset = copy_blob(payload.weights, reference)


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


def leave_a_weight_behind(export: Export) -> None:
    """Add a blob to the weight file to which no function refers."""
    payload = blocks(export)
    operation = payload.operations(export.functions[0], QUANTIZED)[0]
    copy_blob(payload.weights, operation.inputs["data"].arguments[0].value.blobFileValue)


def perturb_a_scale(export: Export) -> None:
    """Make one row of a quantized linear 1 % too large."""
    payload = blocks(export)
    operation = payload.operations(export.functions[0], QUANTIZED)[0]
    reference = operation.inputs["scale"].arguments[0].value.blobFileValue
    scale_half(payload.weights, reference, 3, 1.01)


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
    reference = constant(payload, export.functions[0], "attention_norm_weight")
    values = halves(payload.weights, reference)
    values[:] = change(values.astype(np.float64))


def add_a_bias(export: Export) -> None:
    """Set one bias to 0.1: a Llama has none, and the exporter writes zeros."""
    payload = blocks(export)
    put_half(payload.weights, constant(payload, export.functions[0], "linear_0_bias_0"), 7, 0.1)


def swap_two_weights(export: Export) -> None:
    """Swap the gate and the up projection of a layer, which have equal shapes."""
    payload = blocks(export)
    for function in export.functions:
        gate, up = (op.inputs["weight"].arguments[0] for op in _linears(payload, function)[4:6])
        gate.name, up.name = up.name, gate.name


def _linears(payload: Payload, function: str) -> list[Any]:
    return payload.operations(function, "linear")


def huge_activations(export: Export) -> None:
    """Make the embedding 2,000 times too large: an RMSNorm's squares leave fp16's range."""
    payload = export.payloads[0]
    operation = payload.operations(export.functions[0], QUANTIZED)[0]
    value = operation.inputs["scale"].arguments[0].value
    for index in range(value.type.tensorType.dimensions[0].constant.size):
        scale_half(payload.weights, value.blobFileValue, index, 2000.0)
