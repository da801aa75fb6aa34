"""What `roles` says of a method that does not follow its mask."""

import pytest
import torch

from harness.checks.probe import Probe
from harness.checks.roles import _mask_problems
from harness.generate.phase import LayerCache, Phase
from harness.pte import TensorSpec

LENGTH, CACHE, WIDTH, VOCABULARY = 4, 2, 4, 16


class Layer:
    """One attention over the values of cache and input, weighted by the mask alone.

    The logits of the token at `leak` see the first token through a closed column, too.
    """

    name = "forward"
    inputs = tuple(
        TensorSpec(name, shape, "float32")
        for name, shape in {
            "tokens": (1, LENGTH),
            "mask": (1, LENGTH, CACHE + LENGTH),
            "cos": (LENGTH, WIDTH // 2),
            "sin": (LENGTH, WIDTH // 2),
            "keys": (1, 1, CACHE, WIDTH),
            "values": (1, 1, CACHE, WIDTH),
        }.items()
    )
    outputs = ()

    def __init__(self, leak):
        self.leak = leak
        drawn = torch.Generator().manual_seed(7)
        self.embedding = torch.randn(VOCABULARY, WIDTH, generator=drawn)

    def __call__(self, tokens, mask, cos, sin, keys, values):
        new = self.embedding[tokens][:, None]
        seen = (mask[:, None].softmax(-1) @ torch.cat((values, new), 2))[:, 0]
        if self.leak is not None:
            seen[:, self.leak] += new[:, 0, 0]
        return seen @ self.embedding.T, new, new


@pytest.mark.parametrize("leak", [None, 1, 3])
def test_the_token_that_sees_a_closed_column_is_named(leak):
    layers = (LayerCache(4, 1, 5, 2, CACHE),)
    phase = Phase("forward", LENGTH, 6, {CACHE: 1}, 2, 3, None, layers, "int64", "float32")
    probe = Probe(Layer(leak), phase, [(4, 1, 5, 2, CACHE)], [(1, CACHE)], VOCABULARY)
    wanted = f"the first token moves position {leak} of the input though its column of the masks, 2"
    problems = list(_mask_problems(probe))
    assert [one[: len(wanted)] for one in problems] == ([wanted] if leak else [])
