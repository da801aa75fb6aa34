"""Inputs, outputs and states that break outside the program, and a sound function beside each."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.mil import get_policy, load_function
from tests.hazards.programs import converted, found, traced


class Counter(nn.Module):
    """Add the input to a buffer; return `result` of the sum."""

    def __init__(self, result, width=32):
        super().__init__()
        self.register_buffer("k", torch.zeros(1, width))
        self.result = result

    def forward(self, x):
        y = self.k + x
        self.k[:] = y
        return self.result(y)


def counter(result, width=32):
    import coremltools as ct

    example = torch.ones(1, width)
    return converted(
        traced(Counter(result, width), example),
        inputs=[ct.TensorType(name="x", shape=example.shape, dtype=np.float16)],
        outputs=[ct.TensorType(name="y", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=example.shape, dtype=np.float16), name="k")],
    )


def test_an_output_that_is_written_to_a_state_is_named_and_counts_right():
    package = counter(lambda y: y)
    assert found(package)["H33"] == ["output 'y'"]
    function = load_function(package, "main", get_policy("strict"), stateful=True)
    state = function.new_state()
    sums = [float(function({"x": torch.ones(1, 32)}, state)["y"][0, 0]) for _ in range(3)]
    assert sums == [1, 2, 3]


@pytest.mark.parametrize("result", [lambda y: y.sum(-1, keepdim=True), lambda y: y * 2])
def test_an_output_that_is_computed_from_it_is_not_named(result):
    assert "H33" not in found(counter(result))


@pytest.mark.parametrize(("width", "is_named"), [(32, False), (270, True)])
def test_a_state_of_an_odd_width_is_named(width, is_named):
    assert found(counter(lambda y: y * 2, width)).get("H38", []) == ["state 'k'"] * is_named


def flexible(a, b, norm=False):
    """Add up two inputs of these shapes, along their second axis."""

    class Sums(nn.Module):
        def forward(self, a, b):
            a = nn.functional.layer_norm(a, (4,)) if norm else a
            return a.sum(1) + b.sum(1)

    import coremltools as ct

    example = (torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    inputs = [ct.TensorType(name=n, shape=s) for n, s in (("a", a), ("b", b))]
    return converted(traced(Sums(), *example), inputs=inputs)


def ranged(low=1, high=8):
    import coremltools as ct

    return ct.Shape((1, ct.RangeDim(low, high, default=2), 4))


def listed(*shapes):
    import coremltools as ct

    return ct.EnumeratedShapes([list(shape) for shape in shapes])


LIST = ((1, 2, 4), (1, 6, 4))


@pytest.mark.parametrize(
    ("shapes", "codes"),
    [
        (lambda: (ranged(), ranged()), set()),
        (lambda: (ranged(), (1, 2, 4)), set()),
        (lambda: (listed(*LIST), (1, 2, 4)), set()),
        (lambda: (listed(*LIST), ranged()), {"H45"}),
        (lambda: (listed(*LIST), listed(*LIST)), {"H46"}),
        (lambda: (listed((1, 2, 4), (8, 2, 4)), (1, 2, 4)), {"H46"}),
    ],
)
def test_flexible_inputs_that_do_not_go_together_are_named(shapes, codes):
    assert found(flexible(*shapes())).keys() & {"H45", "H46", "H47"} == codes


@pytest.mark.parametrize(("shapes", "is_named"), [(LIST, True), (None, False)])
def test_a_layer_norm_over_a_list_of_shapes_is_named(shapes, is_named):
    shape = listed(*shapes) if shapes else ranged()
    assert ("H47" in found(flexible(shape, (1, 2, 4), norm=True))) == is_named


class Decoder(nn.Module):
    """A decoder of one layer over ids [1, T], with a head for words or for classes."""

    def __init__(self, causal=True, words=True, cached=False):
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.cached = causal, cached
        self.embed = nn.Embedding(50, 32)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 50 if words else 3)

    def forward(self, ids, past=None):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        if self.cached:
            k, v = torch.cat((past, k), 1), torch.cat((past, v), 1)
        scores = q @ k.transpose(-1, -2) / 32**0.5
        if self.causal:
            past = 4 if self.cached else 0
            hidden = torch.ones(6, 6 + past, dtype=torch.bool).triu(1 + past)
            scores = scores.masked_fill(hidden, -1e4)
        return self.head(torch.softmax(scores, -1) @ v)


def decoder(**options):
    import coremltools as ct

    example = [torch.zeros(1, 6, dtype=torch.int32)]
    inputs = [ct.TensorType(name="ids", shape=(1, 6), dtype=np.int32)]
    if options.get("cached"):
        example.append(torch.zeros(1, 4, 32))
        inputs.append(ct.TensorType(name="past", shape=(1, 4, 32)))
    return converted(traced(Decoder(**options), *example), inputs=inputs)


@pytest.mark.parametrize(
    ("options", "is_named"),
    [
        ({}, True),
        ({"causal": False}, False),
        ({"words": False}, False),
        ({"cached": True}, False),
    ],
)
def test_a_language_model_without_a_cache_is_named(options, is_named):
    assert ("H48" in found(decoder(**options))) == is_named
