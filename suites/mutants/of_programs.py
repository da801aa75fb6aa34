"""Mutations of ML Programs: an operation, one of its constants, or its operands."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from harness.artifact.proto import proto_module
from harness.suites.mutants.edit import Export, Mutation, Payload
from harness.suites.mutants.faults import MULTI, NUMBERS, PTE, fault
from harness.suites.mutants.judge import judge_export

row = partial(fault, room="program", judge=judge_export)
FUNCTION = r"package 1, function '\w+': "
OPERATION = r"method 'forward', delegate \d, function '\w+': operation \d+: \w+"
INPUTS = r"function '\w+': wiring \d+: \w+ = \w+, inputs.*: \w+.* -> \w+"
TWO_EPSILONS = dict.fromkeys(("tables", "parity"), "2 epsilons, not one")
QUANTIZED = "constexpr_blockwise_shift_scale"  # the operation that makes a linear's weights


def blocks(export: Export) -> Payload:
    """Return the payload that holds the transformer blocks: the one with the most operations."""
    function = export.functions[0]
    return max(export.payloads, key=lambda payload: len(payload.block(function).operations))


def everywhere(export: Export) -> Iterator[tuple[Payload, str]]:
    """Yield the payload of the transformer blocks with each of its functions."""
    payload = blocks(export)
    return ((payload, function) for function in export.functions)


def constant_of(payload: Payload, function: str, operation: Any, parameter: str) -> Any:
    """Return the immediate tensor of the constant that an operation's parameter names."""
    name = operation.inputs[parameter].arguments[0].name
    for candidate in payload.operations(function, "const"):
        if candidate.outputs[0].name == name:
            return candidate.attributes["val"].immediateValue.tensor
    raise AssertionError(f"{operation.type}'s {parameter} is not a constant")


def masked_scores(payload: Payload, function: str) -> Any:
    """Return the addition that masks the first layer's scores."""
    additions = payload.operations(function, "add")
    return next(op for op in additions if "mask" in op.inputs["y"].arguments[0].name)


def joined_caches(payload: Payload, function: str) -> list[Any]:
    """Return the operands of each concatenation of a cache and a new value, in this order."""
    values = [op.inputs["values"].arguments for op in payload.operations(function, "concat")]
    return [both for both in values if any("_cache_" in value.name for value in both)]


@row(
    "the epsilon",
    {"tables": "norm_eps: is 0.0001"},
    kinds=PTE,
    gate=rf"{OPERATION} = add, y: FLOAT16\[\] 1e-05 -> FLOAT16\[\] 0.0001",
)
def change_epsilon(export: Export) -> None:
    """Make the epsilon of every norm ten times too large."""
    for payload in export.payloads:
        for function in export.functions:
            for value in epsilons(payload, function):
                value.bytes.values = struct.pack("<e", 1e-4)


@row(
    "one epsilon",
    TWO_EPSILONS,
    kinds=PTE,
    gate=rf"{OPERATION} = add, y: FLOAT16\[\] 1e-05 -> FLOAT16\[\] 0.0001",
)
def change_one_epsilon(export: Export) -> None:
    """Make the epsilon of one norm ten times too large."""
    for payload, function in everywhere(export):
        epsilons(payload, function)[0].bytes.values = struct.pack("<e", 1e-4)


def epsilons(payload: Payload, function: str) -> list[Any]:
    """Return the constants that norms add before they take the root."""
    sums = {op.outputs[0].name: op for op in payload.operations(function, "add")}
    roots = [op.inputs["x"].arguments[0].name for op in payload.operations(function, "rsqrt")]
    return [constant_of(payload, function, sums[name], "y") for name in roots]


@row(
    "the attention scale",
    NUMBERS,
    gate=rf"{OPERATION} = mul, y: FLOAT16\[\] 0.25 -> FLOAT16\[\] 0.255",
)
def change_attention_scale(export: Export) -> None:
    """Scale the attention scores of one layer 2 % too much."""
    for payload, function in everywhere(export):
        products = {op.outputs[0].name for op in payload.operations(function, "matmul")}
        scaling = next(
            op
            for op in payload.operations(function, "mul")
            if op.inputs["x"].arguments[0].name in products
        )
        value = constant_of(payload, function, scaling, "y").bytes
        (scale,) = struct.unpack("<e", value.values)
        value.values = struct.pack("<e", scale * 1.02)


def retype(kind: str, other: str, which: int) -> Mutation:
    """Turn one operation of a kind into another that takes the same inputs."""

    def mutate(export: Export) -> None:
        for payload, function in everywhere(export):
            payload.operations(function, kind)[which].type = other

    return mutate


@row("the mask's sign", NUMBERS, gate=rf"{OPERATION}: add.* -> sub")
def subtract_the_mask(export: Export) -> None:
    """Subtract the mask in one layer: a hidden position becomes infinitely likely."""
    for payload, function in everywhere(export):
        masked_scores(payload, function).type = "sub"


@row(
    "the mask ignored",
    NUMBERS
    | {
        "greedy": "are not the oracle's",
        "roles": "cache position 0 moves outputs though its column is closed",
    },
    gate=INPUTS,
)
def ignore_the_mask(export: Export) -> None:
    """Let one layer's softmax read the scores before they are masked."""
    for payload, function in everywhere(export):
        unmasked = masked_scores(payload, function).inputs["x"].arguments[0].name
        payload.operations(function, "softmax")[0].inputs["x"].arguments[0].name = unmasked


@row(
    "the softmax axis", NUMBERS, gate=rf"{OPERATION} = softmax, axis: INT32\[\] -1 -> INT32\[\] -2"
)
def wrong_softmax_axis(export: Export) -> None:
    """Normalise the scores over the queries."""
    for payload, function in everywhere(export):
        operation = payload.operations(function, "softmax")[0]
        constant_of(payload, function, operation, "axis").ints.values[0] = -2


@row("new keys before cached ones", NUMBERS | {"residues": "error is"}, gate=INPUTS)
def new_before_cached(export: Export) -> None:
    """Join one layer's new keys before the cached ones, while the mask expects them after."""
    for payload, function in everywhere(export):
        cached, new = joined_caches(payload, function)[0]
        cached.name, new.name = new.name, cached.name


@row(
    "another layer's cache",
    NUMBERS,
    kinds=PTE,
    gate=r"wiring \d+: .* = concat, inputs.*_0_l0_h0.* -> .*_0_l1_h0",
)
def cache_of_another_layer(export: Export) -> None:
    """Swap the caches that the first and the second layer's attention read."""
    for payload, function in everywhere(export):
        joined = {both[0].name: both[0] for both in joined_caches(payload, function)}
        one, other = (joined[f"attn_options_in_cache_state_0_l{layer}_h0"] for layer in (0, 1))
        one.name, other.name = other.name, one.name


@row("RoPE of halves", NUMBERS | {"roles": "another layout"}, gate=rf"{OPERATION}: slice_by_index")
def rotate_halves(export: Export) -> None:
    """Rotate a head's first half with its second, not each value with its neighbour."""
    join_as_halves(export)
    for payload, function in everywhere(export):
        for operation in payload.operations(function, "slice_by_index"):
            half = operation.outputs[0].type.tensorType.dimensions[-1].constant.size
            begin, end, stride = (
                constant_of(payload, function, operation, name).ints.values
                for name in ("begin", "end", "stride")
            )
            first = begin[-1] == 0
            begin[-1], end[-1], stride[-1] = (0, half, 1) if first else (half, 2 * half, 1)
            constant_of(payload, function, operation, "end_mask").bools.values[-1] = False


@row(
    "RoPE joined as halves", {"parity": "caches error is"}, "ET 11808", gate=rf"{OPERATION}: stack"
)
def join_as_halves(export: Export) -> None:
    """Join the rotated values as two halves (ExecuTorch 11808).

    Queries and keys are permuted alike, so that their products and the logits stay right; only the
    cached keys are wrong.
    """
    for payload, function in everywhere(export):
        for operation in payload.operations(function, "stack"):
            constant_of(payload, function, operation, "axis").ints.values[0] = -2
            *_, values, pair = operation.outputs[0].type.tensorType.dimensions
            values.constant.size, pair.constant.size = pair.constant.size, values.constant.size


@row(
    "the last position ignored",
    NUMBERS | {"residues": "error is", "roles": r"method 'prefill', .*does not move the logits"},
    modes=MULTI,
    gate=rf"{OPERATION}: select.* -> mul",
)
def ignore_the_last_position(export: Export) -> None:
    """Return the logits of the chunk's first position, whichever is asked for."""
    payload = export.payloads[-1]
    for function in export.functions:
        zero = next(
            op.outputs[0].name
            for op in payload.operations(function, "const")
            if list(op.attributes["val"].immediateValue.tensor.ints.values) == [0]
            and not op.outputs[0].type.tensorType.dimensions
        )
        (operation,) = payload.operations(function, "select")
        index = operation.inputs["a"].arguments[0].name
        operation.type = "mul"  # index times zero
        operation.ClearField("inputs")
        operation.inputs["x"].arguments.add(name=index)
        operation.inputs["y"].arguments.add(name=zero)


@row(
    "fp32 leaks",
    {"program": "fp32 results in an fp16 export: silu"},
    "ET 19523",
    gate=rf"{OPERATION} = silu, result: FLOAT16.* -> FLOAT32",
)
def leak_fp32(export: Export) -> None:
    """Let one operation give fp32 in an fp16 program."""
    operation = blocks(export).operations(export.functions[0], "silu")[0]
    operation.outputs[0].type.tensorType.dataType = proto_module("MIL_pb2").FLOAT32


@row(
    "ids of 8 bits",
    {"token-ids": "limits prompt (logits|caches) error"},
    gate=r"function '\w+': operation \d+: (cast|\w+: cast\(.*'int8')",
)
def narrow_ids(export: Export) -> None:
    """Narrow the ids of tokens to 8 bits, where the converter narrows them to 16."""
    found = 0
    for payload in export.payloads:
        for function in export.functions:
            for operation in payload.operations(function, "cast"):
                dtype = constant_of(payload, function, operation, "dtype").strings.values
                source = operation.inputs["x"].arguments[0].name
                if dtype[0] == "int16" and "tokens" in source:
                    dtype[0] = "int8"
                    operation.outputs[0].type.tensorType.dataType = proto_module("MIL_pb2").INT8
                    found += 1
    assert found == len(export.functions)


@row(
    "fused attention",
    {"program": "fused attention"},
    "ET 15833",
    gate=rf"{OPERATION}: softmax.* -> scaled_dot_product_attention",
)
def fuse_attention(export: Export) -> None:
    """Give a softmax the name of the fused attention."""
    operation = blocks(export).operations(export.functions[0], "softmax")[0]
    operation.type = "scaled_dot_product_attention"


@row(
    "a state is read",
    {"program": "states.*read_state"},
    "CT 2826",
    gate=rf"{OPERATION}: silu.* -> read_state",
)
def read_a_state(export: Export) -> None:
    """Let an operation read a state, although nobody asked for states."""
    blocks(export).operations(export.functions[0], "silu")[0].type = "read_state"


@row(
    "a state is taken",
    {"program": "states.*in_cache_state"},
    "ET 21855",
    in_folder={"program": "states.*k_cache_0"},
    gate=r"function '\w+': input .*cache.*: FLOAT16.* -> state FLOAT16",
)
def take_a_state(export: Export) -> None:
    """Let a function take a cache as a state (ExecuTorch 21855)."""
    function = blocks(export).model.mlProgram.functions[export.functions[0]]
    cache = next(value for value in function.inputs if "_cache_" in value.name)
    tensor = cache.type.tensorType.SerializeToString()
    cache.type.stateType.wrappedType.tensorType.ParseFromString(tensor)


row("add is sub", NUMBERS, gate=rf"{OPERATION}: add.* -> sub")(retype("add", "sub", 1))


row("silu is sigmoid", NUMBERS, "ET 11222", gate=rf"{OPERATION}: silu.* -> sigmoid")(
    retype("silu", "sigmoid", 0)
)
