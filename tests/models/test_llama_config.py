import json

import pytest

from harness.errors import HarnessError
from harness.models import RopeScaling
from harness.models.config import load_params, parse_params

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 100}


def test_what_is_not_given_is_derived_as_meta_does():
    config = parse_params(SIZES)
    assert (config.n_kv_heads, config.head_dim) == (4, 16)
    assert (config.norm_eps, config.rope_theta, config.rope_scaling) == (1e-5, 10000.0, None)


@pytest.mark.parametrize(
    ("params", "hidden_dim"),  # the published widths of these models
    [
        ({"dim": 4096, "multiple_of": 256}, 11008),  # Llama 2 7B
        ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
        ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5}, 8192),  # Llama 3.2 1B
        ({"dim": 576, "hidden_dim": 1536}, 1536),  # SmolLM2 135M
    ],
)
def test_the_feed_forward_width_follows_metas_rule(params, hidden_dim):
    assert parse_params({**SIZES, "n_heads": 32, "head_dim": 64, **params}).hidden_dim == hidden_dim


def test_scaled_rope_has_metas_constants():
    config = parse_params({**SIZES, "use_scaled_rope": True, "rope_scale_factor": 32})
    assert config.rope_scaling == RopeScaling(32.0, 4.0, 1.0, 8192)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("moe", True),
        ("sliding_window", 512),
        ("use_qk_norm", True),
        ("attention_qkv_bias", True),
        ("use_hf_rope", True),
        ("act_fn", "gelu"),
        ("partial_rotary_factor", 0.5),
        ("quantization_args", {"scheme": "8da4w"}),
    ],
)
def test_a_key_that_changes_the_maths_is_refused_by_name(key, value):
    with pytest.raises(HarnessError, match=f"{key} = .* not supported"):
        parse_params({**SIZES, key: value})


def test_the_neutral_value_of_such_a_key_is_accepted():
    assert parse_params({**SIZES, "moe": False, "sliding_window": None, "act_fn": "silu"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dim": None}, "dim is missing"),
        ({"vocab_size": -1}, "vocab_size must be a whole number from 1"),
        ({"n_layers": True}, "n_layers must be a whole number"),
        ({"n_layers": 10**12}, "n_layers must be a whole number"),
        ({"n_layers": 10**7}, "n_layers must be a whole number from 1 to 4096"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"norm_eps": 0}, "norm_eps must be a number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number above 0"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope must be true or false"),
        ({"use_scaled_rope": True, "high_freq_factor": 1}, "high_freq_factor must be above 1"),
        ({"n_hedas": 4}, "unknown key 'n_hedas'"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(change, sentence):
    with pytest.raises(HarnessError, match=sentence):
        parse_params({**SIZES, **change})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "must hold a JSON object"),
        (b" " * (1 << 20) + b"{}", "larger than 1,048,576 bytes: not a params.json"),
        (b'{"act_fn": "\\ud800"}', "is not JSON: a text holds half of a character"),
        (b'{"act_fn": "\xed\xa0\x80"}', "is not JSON: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_that_is_no_params_is_one_clear_error(tmp_path, content, sentence):
    path = tmp_path / "params.json"
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=sentence) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(HarnessError, match=f"{path}: (cannot be read|it holds no params.json)"):
            load_params(path)


def test_weight_shapes_count_every_parameter_of_smollm2(tmp_path):
    params = {"dim": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "hidden_dim": 1536}
    path = tmp_path / "params.json"
    path.write_text(json.dumps({**params, "vocab_size": 49152}))
    shapes = load_params(path).weight_shapes
    total = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert total - 49152 * 576 == 134_515_008  # as published, which counts tied embeddings once
