"""What people met in the numbers of converted programs, made small.

The wrong spelling gives a wrong number, or one that only some inputs show; see `program`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness.suites.mutants.program import Program, mb, report

OFF = {"outputs": r"method 'main': .*output '.*' is off by"}


@report("a constant minus a product", {"hazards": "^H01 linear"} | OFF, "U1")
def constant_minus_product(broken: bool) -> Program:
    """Subtract a product from a constant; soundly, add the negative product."""
    constant = np.array([100, 200, 300], np.float32)

    def function(x: Any) -> Any:
        product = mb().matmul(x=x, y=np.eye(3, dtype=np.float32))
        if broken:
            return mb().sub(x=constant, y=product)
        return mb().add(x=mb().mul(x=product, y=np.float32(-1)), y=constant)

    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    return Program(function, [("fp32", (2, 3))], [([x], [constant - x])])


@report("a causal mask of NaN", {"hazards": "^H02 sub", "outputs": "is off by"}, "U3")
def mask_of_infinities(broken: bool) -> Program:
    """Subtract the lower triangle of infinities from them; soundly, add a constant mask."""

    def function(x: Any) -> Any:
        if not broken:
            mask = np.triu(np.full((3, 3), -1e4, np.float32), 1)
            return mb().softmax(x=mb().add(x=x, y=mask), axis=-1)
        full = mb().add(x=mb().mul(x=x, y=np.float32(0)), y=np.float32(-np.inf))
        mask = mb().sub(x=full, y=mb().band_part(x=full, lower=-1, upper=0))
        return mb().softmax(x=mb().add(x=x, y=mask), axis=-1)

    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    scores = torch.from_numpy(x) + torch.triu(torch.full((3, 3), -torch.inf), 1)
    return Program(function, [("fp32", (3, 3))], [([x], [scores.softmax(-1)])])


@report("tables that are not interleaved", OFF, "U5")
def tables_interleaved(broken: bool) -> Program:
    """Interleave two constants, which are folded; soundly, stack and reshape them."""
    one = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    other = one + 6
    table = np.stack([one, other], 1).reshape(6, 2)

    def function(x: Any) -> Any:
        if broken:
            return mb().add(x=x, y=mb().concat(values=[one, other], axis=0, interleave=True))
        return mb().add(x=x, y=table)

    return Program(function, [("fp32", (6, 2))], [([np.zeros((6, 2), np.float32)], [table])])


@report("a begin of two slices", {"hazards": "^H13 slice_by_index", "outputs": "has shape"}, "U7")
def begin_of_two_slices(broken: bool) -> Program:
    """Take the last of two sequences by one constant; soundly, by two."""

    def function(x: Any, y: Any) -> Any:
        begin, other = (mb().const(val=np.array([0, -1], np.int32), name=n) for n in "ab")
        first = mb().slice_by_index(x=x, begin=begin, end=[1, 10])
        return first, mb().slice_by_index(x=y, begin=begin if broken else other, end=[1, 20])

    x, y = np.arange(10, dtype=np.float32)[None], np.arange(20, dtype=np.float32)[None]
    calls = [([x, y], [x[:, -1:], y[:, -1:]])]
    return Program(function, [("fp32", (1, 10)), ("fp32", (1, 20))], calls)


@report("a division by 1 that was removed", OFF, "U9")
def floor_div_by_one(broken: bool) -> Program:
    """Divide by 1 and round down; soundly, only round down."""

    def function(x: Any) -> Any:
        floor = mb().floor_div(x=x, y=np.float32(1)) if broken else mb().floor(x=x)
        return mb().add(x=floor, y=np.float32(1))

    x = np.array([1.5, -0.5, 2.9, 3], np.float32)
    return Program(function, [("fp32", (4,))], [([x], [np.floor(x) + 1])])


@report("attention without its mask", {"hazards": "^H10 input 'mask'"} | OFF, "U10")
def attention_of_constants(broken: bool) -> Program:
    """Attend over constants by the fused operation; soundly, by products and a softmax."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 8)).astype(np.float32)

    def function(mask: Any) -> Any:
        if broken:
            return mb().scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask)
        scores = (q @ k.swapaxes(-1, -2) / 8**0.5).astype(np.float32)
        weights = mb().softmax(x=mb().add(x=scores, y=mask), axis=-1)
        return mb().matmul(x=weights, y=v)

    mask = np.triu(np.full((1, 1, 4, 4), -1e4, np.float32), 1)
    tensors = [torch.from_numpy(one) for one in (q, k, v)]
    attention = torch.nn.functional.scaled_dot_product_attention
    wanted = attention(tensors[0], tensors[1], tensors[2], attn_mask=torch.from_numpy(mask))
    return Program(function, [("fp32", (1, 1, 4, 4))], [([mask], [wanted])], target="iOS18")


@report("a negative index of another axis", {"hazards": "^H09 gather_nd"} | OFF, "U12")
def negative_index(broken: bool) -> Program:
    """Pick rows of a batch by negative indices; soundly, of a table."""

    def function(x: Any, indices: Any) -> Any:
        return mb().gather_nd(x=x, indices=indices, batch_dims=int(broken))

    x = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    indices = np.array([[[-1], [0]], [[1], [-1]]], np.int32)
    if broken:
        calls = [([x, indices], [np.stack([x[0, [4, 0]], x[1, [1, 4]]])])]
        return Program(function, [("fp32", (2, 5, 3)), ("int32", (2, 2, 1))], calls)
    calls = [([x[0], indices[0]], [x[0, [4, 0]]])]
    return Program(function, [("fp32", (5, 3)), ("int32", (2, 1))], calls)


@report("ids of 16 bits", {"hazards": "^H30 cast"} | OFF, "U14")
def ids_of_16_bits(broken: bool) -> Program:
    """Pick ids within a program that computes in fp16; soundly, in fp32."""

    def function(ids: Any, position: Any) -> Any:
        return mb().gather(x=ids, indices=position, axis=0)

    ids = np.array([5, 40000, 100000, 128255], np.int32)
    calls = [([ids, np.array([n], np.int32)], [ids[n : n + 1]]) for n in (1, 3)]
    precision = "FLOAT16" if broken else "FLOAT32"
    return Program(function, [("int32", (4,)), ("int32", (1,))], calls, precision=precision)


@report("the logarithm of a softmax", {"outputs strict": "is off by", "hazards": "^H03 log"}, "U15")
def log_of_softmax(broken: bool) -> Program:
    """Take the logarithm of a softmax; soundly, subtract the logarithm of the sum."""

    def function(x: Any) -> Any:
        if broken:
            return mb().log(x=mb().softmax(x=x, axis=-1))
        top = mb().reduce_max(x=x, axes=[-1], keep_dims=True)
        shifted = mb().sub(x=x, y=top)
        total = mb().reduce_sum(x=mb().exp(x=shifted), axes=[-1], keep_dims=True)
        return mb().sub(x=shifted, y=mb().log(x=total))

    x = np.array([[12, 20, -3, 30]], np.float32)
    wanted = torch.from_numpy(x).log_softmax(-1)
    return Program(function, [("fp32", (1, 4))], [([x], [wanted])], precision="FLOAT16")


@report("integers divided in floating point", {"hazards": "^H05"}, "U17")
def integers_in_floats(broken: bool) -> Program:
    """Divide integers as fp32; soundly, as integers."""

    def function(a: Any) -> Any:
        if not broken:
            return mb().floor_div(x=a, y=np.int32(2))
        quotient = mb().real_div(x=mb().cast(x=a, dtype="fp32"), y=np.float32(2))
        return mb().cast(x=mb().floor(x=quotient), dtype="int32")

    a = np.array([7, 8, 33554435], np.int32)
    return Program(function, [("int32", (3,))], [([a], [a // 2])])


@report("an addition without its alpha", OFF, "ET 11687")
def addition_without_alpha(broken: bool) -> Program:
    """Leave the factor out that an addition has."""

    def function(x: Any, y: Any) -> Any:
        return mb().add(x=x, y=y if broken else mb().mul(x=y, y=np.float32(2)))

    x = np.arange(4, dtype=np.float32)
    return Program(function, [("fp32", (4,)), ("fp32", (4,))], [([x, x], [3 * x])])


@report("two reads of a state merged around a write", OFF, "CT 2786")
def reads_merged(broken: bool) -> Program:
    """Return what a state held before a write, twice; soundly, before and after it."""

    def function(x: Any, cache: Any) -> Any:
        before = mb().read_state(input=cache)
        written = mb().add(x=before, y=mb().cast(x=x, dtype="fp16"))
        after = mb().coreml_update_state(state=cache, value=written)
        return mb().cast(x=mb().mul(x=before if broken else after, y=np.float16(1.5)), dtype="fp32")

    x = np.ones(4, np.float32)
    calls = [([x], [1.5 * n * x]) for n in (1, 2, 3)]
    return Program(function, [("fp32", (4,))], calls, target="iOS18", states=[(4,)])


@report("a state that one call advances twice", OFF, "ET 5294")
def advanced_twice(broken: bool) -> Program:
    """Write to a counter twice in a call."""

    def function(x: Any, cache: Any) -> Any:
        value = mb().read_state(input=cache)
        for _ in range(2 if broken else 1):
            added = mb().add(x=value, y=mb().cast(x=x, dtype="fp16"))
            value = mb().coreml_update_state(state=cache, value=added)
        return mb().cast(x=mb().mul(x=value, y=np.float16(2)), dtype="fp32")

    x = np.ones(4, np.float32)
    calls = [([x], [2.0 * n * x]) for n in (1, 2, 3)]
    return Program(function, [("fp32", (4,))], calls, target="iOS18", states=[(4,)])


@report("activations of one sample", OFF, "U28")
def clipped_activations(broken: bool) -> Program:
    """Quantize activations by the smallest sample's scale; soundly, by the largest one's."""
    scale = np.float32(0.1 / 127 if broken else 10 / 127)

    def function(x: Any) -> Any:
        small = mb().quantize(input=x, scale=scale, output_dtype="int8")
        return mb().dequantize(input=small, scale=scale)

    x = np.array([10, 0, -10, 5 / 127 * 127], np.float32)
    wanted = np.round(x / (10 / 127)) * 10 / 127
    return Program(function, [("fp32", (4,))], [([x], [wanted])])


@report("an infinite square under a norm", {"fp16-range": "exceed fp16's"}, "CT 2822")
def square_beyond_fp16(broken: bool) -> Program:
    """Square values before they are scaled; soundly, divide by the largest one first."""

    def function(x: Any) -> Any:
        scaled = x
        if not broken:
            scaled = mb().mul(x=x, y=np.float32(1 / 512))
        mean = mb().reduce_mean(x=mb().mul(x=scaled, y=scaled), axes=[-1], keep_dims=True)
        return mb().mul(x=scaled, y=mb().rsqrt(x=mean, epsilon=np.float32(1e-3)))

    x = np.array([[500, -300, 200, 100]], np.float32)
    wanted = x / np.sqrt((x * x).mean(-1, keepdims=True))
    return Program(function, [("fp32", (1, 4))], [([x], [wanted])], precision="FLOAT16")
