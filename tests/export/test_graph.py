"""The norm that cannot overflow in fp16, and the packing and planning of weights."""

from dataclasses import replace

import pytest
import torch

from harness.errors import HarnessError
from harness.export.graph import StageModule, rms_norm
from harness.export.options import ExportOptions
from harness.export.plan import plan_methods, plan_packages
from harness.export.weight_store import pack_int4
from harness.fixtures.random_model import random_weights
from harness.models.config import parse_params
from harness.models.model import StaticModel

EPS = 1e-5
PARAMS = {"dim": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 96, "hidden_dim": 64}
CONFIG = parse_params(PARAMS)


@pytest.mark.parametrize("changes", [{}, {"use_qk_norm": True, "qk_norm_before_rope": True}])
def test_the_graph_computes_the_static_model_that_it_shares_no_code_with(changes):
    config = parse_params(PARAMS | changes)
    weights = {n: w.double() for n, w in random_weights(config, seed=1).items()}
    (method,) = plan_methods(config, ExportOptions(input_len=3, max_context_len=8))
    generator = torch.Generator().manual_seed(2)
    values = {v.name: torch.randn(v.shape, generator=generator).double() for v in method.inputs}
    values["tokens"] = torch.tensor([[5, 0, 90]])
    wanted = StaticModel(config, weights, torch.float64)(*values.values())
    for partition in method.partitions:
        for stage in partition.stages:
            pieces = [weights[piece.weight][piece.start : piece.stop] for piece in stage.pieces]
            inputs = [values[value.name] for value in stage.inputs]
            results = StageModule(config, stage)(inputs, pieces)
            values |= zip((value.name for value in stage.outputs), results, strict=True)
    for value, want in zip(method.outputs, wanted, strict=True):
        torch.testing.assert_close(values[value.name], want, rtol=0, atol=1e-11)


def plain(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


@pytest.mark.parametrize("scale", [1e-4, 3e-3, 0.1, 1.0, 300.0, 2e4])
def test_the_norm_is_the_plain_one_at_every_magnitude(scale):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 256, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(256, generator=generator, dtype=torch.float64)
    assert torch.allclose(rms_norm(x, weight, EPS), plain(x, weight), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [3e-3, 1.0, 300.0, 3e3])
def test_in_fp16_the_norm_is_within_a_few_roundings(scale):
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(8, 256, generator=generator) * scale).half()
    x[:, 5] *= 6  # a spike, as trained models have them
    weight = torch.ones(256, dtype=torch.float16)
    found, expected = rms_norm(x, weight, EPS).double(), plain(x.double(), weight.double())
    assert (found - expected).abs().max() <= 4 * 2.0**-11 * expected.abs().max()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 60.0])
def test_in_fp16_the_norm_is_the_plain_one_to_the_last_bit(scale):
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(8, 256, generator=generator) * scale).half().clamp(-250, 250)
    weight = torch.randn(256, generator=generator).half()
    assert torch.equal(rms_norm(x, weight, EPS), plain(x, weight))


@pytest.mark.parametrize("largest", [255.0, 29999.0, 32768.0, 65504.0])
def test_the_norm_overflows_for_no_fp16_value(largest):
    row = torch.full((1, 8192), largest, dtype=torch.float16)
    assert (rms_norm(row, torch.ones_like(row), EPS) - 1).abs().max() <= 2.0**-10


def test_a_row_of_zeros_stays_zeros():
    x = torch.zeros(1, 64, dtype=torch.float16)
    assert torch.equal(rms_norm(x, torch.ones(64, dtype=torch.float16), EPS), x)


@pytest.mark.parametrize(
    ("values", "packed"), [([1, -2], [0xE1]), ([7, -8, 3], [0x87, 0x03]), ([0, -1], [0xF0])]
)
def test_four_bits_are_packed_from_the_lower_half_up(values, packed):
    assert pack_int4(torch.tensor(values, dtype=torch.int8)).tolist() == packed


def test_every_weight_is_in_one_partition_and_every_row_in_one_piece():
    options = ExportOptions(target_split_size=16, max_splits=4)
    (method,) = plan_methods(CONFIG, options)
    rows = {}
    for partition in method.partitions:
        for piece in partition.pieces:
            assert piece.start == rows.get(piece.weight, 0)
            rows[piece.weight] = piece.stop
    assert rows == {name: shape[0] for name, shape in CONFIG.weight_shapes.items()}


def test_partitions_pass_on_what_the_next_one_reads():
    (method,) = plan_methods(CONFIG, ExportOptions())
    have = set(method.inputs)
    for partition in method.partitions:
        assert set(partition.inputs) <= have
        have |= set(partition.outputs)
    assert set(method.outputs) <= have


def test_positional_sharing_needs_as_many_partitions_in_every_method():
    forward, prefill = plan_methods(CONFIG, ExportOptions(mode="multifunction"))
    shorter = replace(prefill, partitions=prefill.partitions[:2])
    with pytest.raises(HarnessError, match="'forward' has 3, 'prefill' has 2; use weight_sharing"):
        plan_packages((forward, shorter), "positional")
    assert len(plan_packages((forward, shorter), "none")) == 5
