"""The checkpoints that an export refuses because of their values."""

import pytest
import torch

from harness.errors import HarnessError
from harness.export.options import ExportOptions
from harness.fixtures.random_model import random_weights
from harness.models.checkpoint import load_checkpoint
from harness.models.config import parse_params
from harness.models.quantize import exported_weights

CONFIG = parse_params({"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 8, "hidden_dim": 32})
QUERIES = "layers.0.attention.wq.weight"
LARGEST = 65504.0  # of fp16


@pytest.fixture
def load(tmp_path):
    """load(values, **options) -> the weights, for an export; one queries' weight is `values`."""

    def load(values, name=lambda meta: meta, **options):
        weights = random_weights(CONFIG, seed=1) | {QUERIES: values}
        torch.save({name(k): v for k, v in weights.items()}, tmp_path / "c.pth")
        return load_checkpoint(tmp_path / "c.pth", CONFIG, ExportOptions(**options).quantization)

    return load


def filled(value):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    weights[3, 5] = value
    return weights


@pytest.mark.parametrize(
    ("value", "dtype", "sentence"),
    [
        (float("nan"), "fp16", "holds NaN"),
        (float("nan"), "fp32", "holds NaN"),
        (float("inf"), "fp32", "holds an infinity"),
        (float("-inf"), "fp16", "holds an infinity"),
        (-1e6, "fp16", "reaches 1e+06, too much for fp16, which ends at 65504"),
        (1e39, "fp32", "reaches 1e+39, too much for fp32, which ends at 3.40282e+38"),
    ],
)
def test_a_value_that_the_export_cannot_hold_is_refused(load, tmp_path, value, dtype, sentence):
    wanted = f"{tmp_path}/c.pth cannot be exported in {dtype}: {QUERIES} {sentence}"
    with pytest.raises(HarnessError) as caught:
        load(filled(value), dtype=dtype)
    assert str(caught.value) == wanted


def test_it_is_named_as_the_file_names_it(load):
    with pytest.raises(HarnessError, match=r": model\.layers\.0\.self_attn\.q_proj\.weight holds"):
        load(filled(float("nan")), name=CONFIG.hugging_face_names.__getitem__)


@pytest.mark.parametrize("scheme", ["none", "c4w"])
@pytest.mark.parametrize("value", [LARGEST, -61408.0, -61424.0, -61440.0])
def test_refused_is_what_becomes_infinite(load, scheme, value):
    """In 4 bits, the lowest value of a row, of 7.5 scales, becomes -8 scales."""
    weights = random_weights(CONFIG, seed=1) | {QUERIES: filled(value)}
    options = ExportOptions(linear_quantize=scheme)
    exported = exported_weights(weights, CONFIG, options.quantization)[QUERIES]
    if exported.isfinite().all():
        load(filled(value), linear_quantize=scheme)
    else:
        with pytest.raises(HarnessError, match="too much for fp16"):
            load(filled(value), linear_quantize=scheme)


def test_only_an_export_refuses_values(tmp_path):
    torch.save(random_weights(CONFIG, seed=1) | {QUERIES: filled(float("nan"))}, tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth", CONFIG)[QUERIES].isnan().any()
