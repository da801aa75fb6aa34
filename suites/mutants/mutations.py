"""The mutations: each breaks one thing that has broken in a real export, or a neighbour of it."""

from __future__ import annotations

import struct
from typing import Any

from suites.mutants.edit import Export, Payload, copy_blob, scale_half


def blocks(export: Export) -> Payload:
    """The payload that holds the transformer blocks: the one with the most operations."""
    function = export.functions[0]
    return max(export.payloads, key=lambda payload: len(payload.block(function).operations))


def head(export: Export) -> Payload:
    """The payload that makes the logits."""
    return export.payloads[-1]


def methods(payload: Payload) -> list[dict[str, list[str]]]:
    """The name lists of every method in a payload's metadata."""
    described = payload.metadata.get("methods")
    return list(described.values()) if described else [payload.metadata]


def nothing(export: Export) -> None:
    """The control: taken apart and put together."""


def unshare_a_weight(export: Export) -> None:
    """One function gets a copy of a scale that both used."""
    payload = blocks(export)
    operation = payload.operations(export.functions[-1], "constexpr_blockwise_shift_scale")[0]
    copy_blob(payload.weights, operation.inputs["data"].arguments[0].value.blobFileValue)


def swap_inputs(first: str, second: str) -> Any:
    """Swap two inputs in every method's metadata, by the ends of their names."""

    def mutate(export: Export) -> None:
        for names in methods(blocks(export)):
            inputs = names["inputNames"]
            one, other = (
                next(i for i, name in enumerate(inputs) if name.endswith(end))
                for end in (first, second)
            )
            inputs[one], inputs[other] = inputs[other], inputs[one]

    return mutate


def swap_outputs(export: Export) -> None:
    """The new keys of one layer are handed out as another's."""
    for names in methods(blocks(export)):
        outputs = names["outputNames"]
        outputs[0], outputs[2] = outputs[2], outputs[0]


def drop_a_method(export: Export) -> None:
    """metadata.json forgets a method."""
    del blocks(export).metadata["methods"][export.functions[-1]]


def perturb_a_scale(export: Export) -> None:
    """One row of a quantised linear is 1 % too large."""
    payload = blocks(export)
    operation = payload.operations(export.functions[0], "constexpr_blockwise_shift_scale")[0]
    reference = operation.inputs["scale"].arguments[0].value.blobFileValue
    scale_half(payload.weights, reference, 3, 1.01)


def perturb_a_norm(export: Export) -> None:
    """One weight of a norm is 1 % too large."""
    payload = blocks(export)
    for operation in payload.operations(export.functions[0], "const"):
        if operation.outputs[0].name.endswith("attention_norm_weight"):
            scale_half(payload.weights, operation.attributes["val"].blobFileValue, 5, 1.01)
            return
    raise AssertionError("no norm weight")


def scalar_of(payload: Payload, function: str, operation: Any, parameter: str) -> Any:
    """The `Value` of the constant that an operation's parameter names."""
    name = operation.inputs[parameter].arguments[0].name
    return next(
        op.attributes["val"]
        for op in payload.operations(function, "const")
        if op.outputs[0].name == name
    )


def change_epsilon(export: Export) -> None:
    """The epsilon of every norm is ten times too large."""
    for payload in export.payloads:
        for function in export.functions:
            sums = {op.outputs[0].name: op for op in payload.operations(function, "add")}
            for operation in payload.operations(function, "rsqrt"):
                added = sums[operation.inputs["x"].arguments[0].name]
                value = scalar_of(payload, function, added, "y")
                value.immediateValue.tensor.bytes.values = struct.pack("<e", 1e-4)


def change_attention_scale(export: Export) -> None:
    """Attention scores are scaled 2 % too much in one layer."""
    payload = blocks(export)
    for function in export.functions:
        products = {op.outputs[0].name for op in payload.operations(function, "matmul")}
        for operation in payload.operations(function, "mul"):
            names = {key: value.arguments[0].name for key, value in operation.inputs.items()}
            if names["x"] in products:
                value = scalar_of(payload, function, operation, "y").immediateValue.tensor
                (scale,) = struct.unpack("<e", value.bytes.values)
                value.bytes.values = struct.pack("<e", scale * 1.02)
                break
        else:
            raise AssertionError("no scaled scores")


def retype(kind: str, other: str, which: int) -> Any:
    """Turn one operation of a kind into another that takes the same inputs."""

    def mutate(export: Export) -> None:
        payload = blocks(export)
        for function in export.functions:
            payload.operations(function, kind)[which].type = other

    return mutate


def wrong_softmax_axis(export: Export) -> None:
    """Scores are normalised over the queries."""
    payload = blocks(export)
    for function in export.functions:
        operation = payload.operations(function, "softmax")[0]
        scalar_of(payload, function, operation, "axis").immediateValue.tensor.ints.values[0] = -2


def new_before_cached(export: Export) -> None:
    """One layer joins new keys before the cached ones, while the mask expects them after."""
    payload = blocks(export)
    for function in export.functions:
        for operation in payload.operations(function, "concat"):
            values = operation.inputs["values"].arguments
            if any("in_cache_state" in binding.name for binding in values):
                values[0].name, values[1].name = values[1].name, values[0].name
                break
        else:
            raise AssertionError("no cache is joined")


def ignore_the_last_position(export: Export) -> None:
    """Logits are those of the chunk's first position, whatever is asked for."""
    payload = head(export)
    for function in export.functions:
        for operation in payload.operations(function, "select"):
            operation.type = "mul"  # index times zero
            constant = next(
                op.outputs[0].name
                for op in payload.operations(function, "const")
                if list(op.attributes["val"].immediateValue.tensor.ints.values) == [0]
                and not op.outputs[0].type.tensorType.dimensions
            )
            index = operation.inputs["a"].arguments[0].name
            operation.ClearField("inputs")
            operation.inputs["x"].arguments.add(name=index)
            operation.inputs["y"].arguments.add(name=constant)


def leak_fp32(export: Export) -> None:
    """One operation gives fp32 in an fp16 program."""
    operation = blocks(export).operations(export.functions[0], "silu")[0]
    operation.outputs[0].type.tensorType.dataType = 11


def fuse_attention(export: Export) -> None:
    """A softmax is called what the fused operation is called."""
    operation = blocks(export).operations(export.functions[0], "softmax")[0]
    operation.type = "scaled_dot_product_attention"


def read_a_state(export: Export) -> None:
    """An operation reads a state, although none was asked for."""
    blocks(export).operations(export.functions[0], "silu")[0].type = "read_state"


def unknown_key(export: Export) -> None:
    """A reference names data that the program does not hold."""
    references = export.references()
    references[0]["key"] = "coreml_executorch_of_another_export"
    export.set_references(references)


def function_of_another_method(export: Export) -> None:
    """A delegate of decode asks for prefill's function."""
    references = export.references()
    names = {reference["functionName"] for reference in references}
    first = references[0]["functionName"]
    references[0]["functionName"] = next(name for name in names if name != first)
    export.set_references(references)


def rename_a_function(export: Export) -> None:
    """A package's function is not called what its delegates ask for."""
    functions = blocks(export).model.mlProgram.functions
    functions["renamed"].CopyFrom(functions[export.functions[-1]])
    del functions[export.functions[-1]]


def claim_multifunction(export: Export) -> None:
    """A single-function package describes functions: Core ML then wants a name."""
    description = blocks(export).model.description
    description.functions.add(name="main")


def halves_instead_of_pairs(export: Export) -> None:
    """The RoPE tables are laid out for rotated halves (ExecuTorch 11808): rows are doubled."""
    data = export.constant("freqs_cos")
    half = len(data) // 2
    export.set_constant("freqs_cos", bytes(data[half:] + data[:half]))


def one_table_row(export: Export) -> None:
    """One row of the sines is the next one's."""
    data = export.constant("freqs_sin")
    row = 2 * 8  # fp16, head_dim / 2 = 8
    data[row * 20 : row * 21] = data[row * 21 : row * 22]
    export.set_constant("freqs_sin", bytes(data))


def huge_activations(export: Export) -> None:
    """The embedding is 2,000 times too large: an RMSNorm's squares leave fp16's range."""
    payload = export.payloads[0]
    reference = payload.operations(export.functions[0], "constexpr_blockwise_shift_scale")[0]
    value = reference.inputs["scale"].arguments[0].value
    for index in range(value.type.tensorType.dimensions[0].constant.size):
        scale_half(payload.weights, value.blobFileValue, index, 2000.0)
