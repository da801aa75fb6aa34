"""Qwen3 against transformers' own, and how its params choose it."""

import json

import pytest
import torch

from harness.errors import HarnessError
from harness.fixtures.random_model import random_weights
from harness.models.checkpoint import is_tied, load_checkpoint
from harness.models.config import load_params, parse_params
from harness.models.llama import LLAMA
from harness.models.model import Oracle
from harness.models.qwen3 import QWEN3

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 96,
    "vocab_size": 300,
}
PARAMS = {"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 8}
QK_NORM = {"use_qk_norm": True, "qk_norm_before_rope": True}


@pytest.fixture
def model(tmp_path):
    """transformers' own model; its files are in tmp_path."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-5)
    ).eval()
    with torch.no_grad():  # transformers starts with norms of one, which hide a swapped norm
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0, 0.2) if "norm" in name else parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    return model


def differences(model, folder):
    """The largest difference of logits from transformers', and of logits from each other."""
    config = load_params(folder / "config.json")
    weights = load_checkpoint(folder, config)
    tokens = torch.randint(300, (150,), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = model(tokens[None]).logits[0].double()
    found = Oracle(config, weights)(tokens)[0]
    return float((found - wanted).abs().max()), float(wanted.abs().max())


def test_the_oracle_gives_the_logits_of_transformers(model, tmp_path):
    off, largest = differences(model, tmp_path)
    assert off < 2e-5 * largest and largest > 1
    config = load_params(tmp_path / "config.json")
    assert config.architecture is QWEN3 and is_tied(load_checkpoint(tmp_path, config))


@pytest.mark.parametrize("norm", ["q_norm", "k_norm"])
def test_a_norm_that_is_swapped_would_be_seen(model, tmp_path, norm):
    for layer in model.model.layers:
        weight = getattr(layer.self_attn, norm).weight
        with torch.no_grad():
            weight.copy_(weight.roll(1))
    off, largest = differences(model, tmp_path)
    assert off > 1e-3 * largest


def test_the_order_of_the_norms_columns_would_be_seen(model, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.models.checkpoint._interleaved", lambda weights, config: weights)
    off, largest = differences(model, tmp_path)
    assert off > 1e-3 * largest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("attention_bias", True),
        ("architectures", ["LlamaForCausalLM"]),
    ],
)
def test_another_attention_is_refused_by_key(tmp_path, key, value):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen3", **SIZES, key: value}))
    with pytest.raises(HarnessError, match=f"{key} = .* is not supported"):
        load_params(path)


def test_metas_keys_choose_the_architecture():
    assert parse_params(PARAMS).architecture is LLAMA
    assert parse_params(PARAMS | QK_NORM).architecture is QWEN3
    assert parse_params(PARAMS | QK_NORM | {"qk_norm_affine": True}).architecture is QWEN3
    shapes = parse_params(PARAMS | QK_NORM).weight_shapes
    assert shapes["layers.0.attention.k_norm_fn.weight"] == (8,)


@pytest.mark.parametrize("change", [{"qk_norm_before_rope": False}, {"qk_norm_affine": False}])
def test_norms_after_rope_or_without_weights_are_refused(change):
    sentence = "use_qk_norm = true .* is not supported; .* Qwen3 needs .*qk_norm_before_rope true"
    with pytest.raises(HarnessError, match=sentence):
        parse_params(PARAMS | QK_NORM | change)
    with pytest.raises(HarnessError, match=sentence):
        parse_params(PARAMS | {"use_qk_norm": True})


def test_the_norms_act_on_each_head():
    """Scaled queries are normalized away; scaled norms are not."""
    config = parse_params(PARAMS | QK_NORM)
    weights = random_weights(config, seed=1)
    plain = Oracle(config, weights)(torch.arange(5))[0]
    for name, same in (("attention.wq", True), ("attention.q_norm_fn", False)):
        key = f"layers.0.{name}.weight"
        scaled = Oracle(config, weights | {key: weights[key] * 4})(torch.arange(5))[0]
        assert torch.allclose(scaled, plain, rtol=0, atol=1e-3) is same
