"""Whole recipes that people met trouble with: their values here are those of PyTorch."""

import numpy as np
import torch
from torch import nn

from harness.artifact.facts import package_facts
from harness.diff.programs import diff_packages
from harness.mil import get_policy, load_function
from tests.hazards.programs import converted, found, traced

HEADS, CONTEXT, WIDTH, VOCABULARY = 2, 16, 16, 40


class Stateful(nn.Module):
    """Attention over two states, as in Apple's article: the mask's last size ends the slices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(VOCABULARY, HEADS * WIDTH)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.head = nn.Linear(HEADS * WIDTH, VOCABULARY)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, HEADS, CONTEXT, WIDTH))

    def forward(self, ids, mask):
        x = self.embed(ids)
        q, k, v = (
            part.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        end = mask.shape[-1]
        begin = end - ids.shape[-1]
        self.keys[:, :, begin:end] = k
        self.values[:, :, begin:end] = v
        attended = nn.functional.scaled_dot_product_attention(
            q, self.keys[:, :, :end], self.values[:, :, :end], attn_mask=mask
        )
        return self.head(attended.transpose(1, 2).flatten(2))


def whole_sequence(module, ids):
    """Return the logits of a sequence, computed at once and without states."""
    n = ids.shape[-1]
    x = module.embed(ids)
    q, k, v = (
        part.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in module.qkv(x).chunk(3, -1)
    )
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return module.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def recipe():
    import coremltools as ct

    new, end = ct.RangeDim(1, 8, default=1), ct.RangeDim(1, CONTEXT, default=1)
    half = {"dtype": np.float16}
    caches = [
        ct.StateType(ct.TensorType(shape=(1, HEADS, CONTEXT, WIDTH), **half), name=name)
        for name in ("keys", "values")
    ]
    return converted(
        traced(Stateful(), torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 5)),
        inputs=[
            ct.TensorType(name="ids", shape=(1, new), dtype=np.int32),
            ct.TensorType(name="mask", shape=(1, 1, new, end), **half),
        ],
        outputs=[ct.TensorType(name="logits", **half)],
        states=caches,
    )


def test_stateful_attention_of_flexible_length_gives_the_logits_of_the_whole_sequence():
    package = recipe()
    function = load_function(package, "main", get_policy("strict"), stateful=True)
    state, module = function.new_state(), Stateful()
    ids = torch.randint(0, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))
    want, start = whole_sequence(module, ids), 0
    for length in (5, 1, 3):
        stop = start + length
        mask = torch.full((length, stop), -torch.inf).triu(start + 1)[None, None]
        got = function({"ids": ids[:, start:stop].int(), "mask": mask.half()}, state)["logits"]
        torch.testing.assert_close(got.float(), want[:, start:stop], atol=4e-3, rtol=0)
        start = stop


def test_a_difference_of_fused_and_decomposed_attention_names_the_operations():
    """An explicit `scale` loses the fused operation (coremltools 2864)."""

    class Attention(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.options = options

        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v, **self.options)

    import coremltools as ct

    example = [torch.rand(1, 2, 8, 16) for _ in range(3)]
    inputs = [ct.TensorType(name=n, shape=x.shape) for n, x in zip("qkv", example, strict=True)]
    fused, scaled = (
        converted(traced(Attention(**options), *example), inputs=inputs)
        for options in ({}, {"scale": 16**-0.5})
    )
    text = " ".join(f"{one.what} {one.a} {one.b}" for one in diff_packages(fused, scaled))
    assert "scaled_dot_product_attention" in text and "softmax" in text


def test_its_sizes_are_named_and_its_peak_is_a_lower_bound():
    package = recipe()
    assert {"H32", "H39"} <= found(package).keys()
    (facts,) = package_facts(package, None).functions
    assert facts.activations.is_minimum
    assert [(state.dtype, state.shape) for state in facts.states] == [
        ("FLOAT16", (1, HEADS, CONTEXT, WIDTH))
    ] * 2


class Transposed(nn.Module):
    """Write a view of a linear's result, transposed, to a slice of a state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.k = nn.Linear(8, 64)
        self.register_buffer("k_cache", torch.zeros(1, 4, 16, 16))

    def forward(self, x):
        self.k_cache[:, :, 2:5] = self.k(x).view(1, 3, 4, 16).transpose(1, 2)
        return self.k_cache.sum(-1)


def test_a_state_written_after_view_and_transpose_is_described_and_right():
    import coremltools as ct

    x = torch.rand(1, 3, 8)
    cache = ct.TensorType(shape=(1, 4, 16, 16), dtype=np.float16)
    package = converted(
        traced(Transposed(), x),
        inputs=[ct.TensorType(name="x", shape=x.shape)],
        states=[ct.StateType(cache, name="k_cache")],
    )
    function = load_function(package, "main", get_policy("strict"), stateful=True)
    (got,) = function({"x": x}, function.new_state()).values()
    torch.testing.assert_close(got.float(), Transposed()(x), atol=2e-2, rtol=0)
    assert [feature.name for feature in package.model.description.state] == ["k_cache"]
