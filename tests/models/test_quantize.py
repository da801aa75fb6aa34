import pytest
import torch

from harness.errors import HarnessError
from harness.fixtures.random_model import random_weights
from harness.models import Quantization
from harness.models.config import parse_params
from harness.models.quantize import exported_weights, quantize_dequantize

CONFIG = parse_params({"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64, "hidden_dim": 64})


@pytest.mark.parametrize(("bits", "group"), [(4, 0), (4, 32), (8, 0), (8, 16)])
def test_values_are_the_nearest_levels_of_their_group(bits, group):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    rounded = quantize_dequantize(weight, bits, group).double().view(48, -1, group or 64)
    blocks = weight.double().view_as(rounded)
    scale = blocks.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)  # the largest at the end
    levels = rounded / scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert levels.min().round() >= -(2 ** (bits - 1)) and levels.max().round() < 2 ** (bits - 1)
    assert ((rounded - blocks).abs() <= scale * 0.50001).all()
    assert (rounded != blocks).any()


def test_a_group_that_does_not_fill_a_row_is_an_error():
    with pytest.raises(HarnessError, match="groups of 24 do not fill a row of 64 columns"):
        quantize_dequantize(torch.zeros(2, 64), 4, 24)


def test_tied_embeddings_leave_as_two_tensors():
    weights = random_weights(CONFIG, seed=1)
    weights["output.weight"] = weights["tok_embeddings.weight"]
    exported = exported_weights(weights, CONFIG, Quantization("fp16", (8, 0), (4, 0)))
    table, output = exported["tok_embeddings.weight"], exported["output.weight"]
    original = weights["output.weight"]
    assert (table - original).abs().max() < (output - original).abs().max()  # 8 bits against 4


def test_norms_are_cast_and_not_quantized_and_the_input_is_left_alone():
    weights = random_weights(CONFIG, seed=1)
    before = {name: value.clone() for name, value in weights.items()}
    exported = exported_weights(weights, CONFIG, Quantization("fp16", (8, 0), (4, 0)))
    assert {value.dtype for value in exported.values()} == {torch.float16}
    assert torch.equal(exported["norm.weight"], weights["norm.weight"].half())
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_without_quantization_an_fp32_export_keeps_every_bit():
    weights = random_weights(CONFIG, seed=1)
    exported = exported_weights(weights, CONFIG, Quantization("fp32"))
    assert all(torch.equal(exported[name], weights[name]) for name in weights)
